"""A client as a careful backend writes it: it repeats what was not answered, with the same Idempotency-Key."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp

_GIVES_UP_AFTER = 25.0  # seconds; longer than the claim of a request lasts whose worker died
_PAUSE = 0.2
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; ``status`` 0: none came. ``was_cut_off``: an attempt before it was, and may have done something."""

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    was_cut_off: bool = False

    @property
    def problem(self) -> str:
        """The slug of the problem, if it is one."""
        return str(self.body.get("type", "")).removeprefix("/problems/")

    @property
    def word(self) -> str:
        """What it says, in a few words."""
        return f"{self.status} {self.problem or self.body.get('status', '')} {self.body.get('limit', '')}".strip()


class Client:
    """Sends requests to one of the workers, whichever; a worker that does not answer is followed by another."""

    def __init__(self, http: aiohttp.ClientSession, urls: Sequence[str], api_key: str, counts: Counter[str]) -> None:
        self._http = http
        self._urls = urls
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._counts = counts

    async def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> Answer:
        """Send a request until it is answered; a repetition is the same to the byte."""
        content = json.dumps(body).encode() if body is not None else None
        headers = {**self._headers, "Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
        deadline = time.monotonic() + _GIVES_UP_AFTER
        cut_off = False
        while time.monotonic() < deadline:
            self._counts["requests"] += 1
            url = random.choice(self._urls) + path  # noqa: S311 - no secret
            try:
                async with self._http.request(method, url, data=content, headers=headers) as response:
                    answer = Answer(response.status, await response.json(content_type=None), cut_off)
            except _FAILURES as error:
                self._counts[f"unanswered: {type(error).__name__}"] += 1
                # A connection that was refused carried nothing; one that broke may have.
                cut_off = cut_off or not isinstance(error, aiohttp.ClientConnectorError)
                await asyncio.sleep(_PAUSE)
                continue
            if answer.problem == "idempotency-in-progress" or answer.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                self._counts[answer.word] += 1
                await asyncio.sleep(answer.body.get("retry_after", 1))
                continue
            return answer
        return Answer(0, was_cut_off=True)
