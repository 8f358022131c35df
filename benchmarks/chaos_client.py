"""A client like that of a careful backend: it retries a request without a response, with the same Idempotency-Key."""

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp

from benchmarks.chaos_ledger import Attempt, Ledger, Response

_GIVES_UP_AFTER = 25.0  # seconds; longer than the claim of a request whose worker was killed
_PAUSE = 0.2
STORE_UNAVAILABLE = "store-unavailable"
_IN_PROGRESS = "idempotency-in-progress"
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError, json.JSONDecodeError)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; ``status`` is 0 if none came.

    ``attempts`` counts the requests that may have been evaluated; ``was_cut_off``: one of them got no response.
    ``began`` is when the first was sent (seconds).
    """

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    was_cut_off: bool = False
    attempts: int = 1
    began: float = 0.0

    @property
    def problem(self) -> str:
        """The slug of the problem, or an empty string."""
        return str(self.body.get("type", "")).removeprefix("/problems/")

    @property
    def word(self) -> str:
        """A short description of the response."""
        return f"{self.status} {self.problem or self.body.get('status', '')} {self.body.get('limit', '')}".strip()


class Client:
    """Sends requests to a random worker; a retry may use another one."""

    def __init__(self, http: aiohttp.ClientSession, urls: Sequence[str], api_key: str, ledger: Ledger) -> None:
        self._http = http
        self._urls = urls
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._ledger = ledger
        self._counts = ledger.counts

    async def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> Answer:
        """Send a request until it gets a response; a repetition is byte-identical."""
        content = json.dumps(body).encode() if body is not None else None
        headers = {**self._headers, "Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
        first = time.monotonic()
        deadline = first + _GIVES_UP_AFTER
        cut_off, attempts = False, 0
        while time.monotonic() < deadline:
            self._counts["requests"] += 1
            attempts += 1
            began = time.monotonic()
            worker = random.choice(self._urls)  # noqa: S311 - no secret
            try:
                async with self._http.request(method, worker + path, data=content, headers=headers) as response:
                    answer = Answer(response.status, await response.json(content_type=None), cut_off, attempts, first)
            except _FAILURES as error:
                self._counts[f"unanswered: {type(error).__name__}"] += 1
                # A refused connection carried no request; a broken one may have.
                if isinstance(error, aiohttp.ClientConnectorError):
                    attempts -= 1
                else:
                    cut_off = True
                    lost = Attempt(began, time.monotonic(), "cut off", worker, is_answered=False)
                    self._note_attempt(path, key, lost)
                await asyncio.sleep(_PAUSE)
                continue
            ended, is_held = time.monotonic(), answer.problem == _IN_PROGRESS
            self._ledger.responses.append(Response(ended, ended - began, answer.problem == STORE_UNAVAILABLE))
            self._note_attempt(path, key, Attempt(began, ended, answer.word, worker, is_held=is_held))
            if is_held:
                attempts -= 1
            # A worker that is interrupted twice answers so in the middle of a request, which may have been evaluated.
            failed = answer.status == HTTPStatus.SERVICE_UNAVAILABLE and answer.problem == "about:blank"
            cut_off = cut_off or failed
            if is_held or failed:
                self._counts[answer.word] += 1
                await asyncio.sleep(answer.body.get("retry_after", 1))
                continue
            return answer
        return Answer(0, was_cut_off=True, attempts=attempts, began=first)

    def _note_attempt(self, path: str, key: str | None, attempt: Attempt) -> None:
        if key:
            self._ledger.attempts[path, key].append(attempt)
