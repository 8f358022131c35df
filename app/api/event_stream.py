"""The route that tells what becomes of a verification, as server-sent events (WHATWG HTML, section 9.2)."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from app.api import schemas
from app.api.auth import Client
from app.api.dependencies import ContainerDep
from app.api.docs import Answers, answers, example_of
from app.verification.errors import StoreUnavailable, VerificationNotFound
from app.verification.event_stream import Changes, Feed
from app.verification.model import Call, Status, Verification
from app.verification.service import VerificationService

router = APIRouter(prefix="/verify", tags=["verify"])

_RECONNECT_MS = 2000
_AFTER_EXPIRY = 0.01  # seconds; Redis drops a key within milliseconds of its time
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter keeps nginx from holding events back


class EventStream(StreamingResponse):
    """An answer of server-sent events; it ends by itself when whoever asked has gone."""

    media_type = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What streams need: who tells of changes, when the service stops, and how many seconds may pass in silence."""

    changes: Changes
    stopping: asyncio.Event
    heartbeat: float


@dataclass(slots=True, kw_only=True)
class Story:
    """What one listener is told of one verification.

    ``told`` is the id of the last event that it has, ``shown`` the calls as they were last read: one that is refunded
    goes without a new version, for a start that was refused leaves no trace.
    """

    service: VerificationService
    live: Live
    feed: Feed
    verification: Verification
    told: str | None = None
    shown: tuple[Call, ...] | None = None

    async def events(self) -> AsyncIterator[bytes]:
        """Return the present state, then each newer one, until it is final or gone or the service stops."""
        yield format_sse_event(retry=_RECONNECT_MS)
        expiry, beat = self._expiry(), time.monotonic() + self.live.heartbeat
        while True:
            news = self._news() or (KEEPALIVE_COMMENT if beat <= time.monotonic() else None)
            if news:
                yield news
                beat = time.monotonic() + self.live.heartbeat
            if is_final(self.verification):
                return
            await self._wait(until=expiry if time.monotonic() < expiry < beat else beat)
            if self.live.stopping.is_set():
                return
            try:
                self.verification = await self.service.read(
                    client=self.verification.client, verification_id=self.verification.id
                )
                expiry = self._expiry()
            except StoreUnavailable:
                continue  # it is read again with the next change or heartbeat
            except VerificationNotFound:
                yield _expired(self.verification.id)
                return

    def _news(self) -> bytes | None:
        version = str(self.verification.version)
        shown, self.shown = self.shown, self.verification.calls
        if version == self.told and shown in {None, self.shown}:
            return None
        self.told = version
        return _event(self.verification)

    def _expiry(self) -> float:
        """Return when it will have expired, by this process's clock: nobody publishes that."""
        left = self.verification.expires_at - self.verification.observed_at
        return time.monotonic() + left.total_seconds() + _AFTER_EXPIRY

    async def _wait(self, *, until: float) -> None:
        """Wait for a change, until a moment at most, and no longer than the service runs."""
        seconds = max(0, until - time.monotonic())
        waits = [asyncio.create_task(self.feed.changed(seconds)), asyncio.create_task(self.live.stopping.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def is_final(verification: Verification) -> bool:
    """Return whether nothing will happen to a verification any more, but that it expires."""
    return verification.status is not Status.PENDING


def _event(verification: Verification) -> bytes:
    data = schemas.Verification.of(verification).model_dump_json()
    return format_sse_event(id=str(verification.version), event="verification", data_str=data)


def _expired(verification_id: str) -> bytes:
    data = {"verification_id": verification_id, "status": "expired"}
    return format_sse_event(event="expired", data_str=json.dumps(data, separators=(",", ":")))


async def _live(container: ContainerDep) -> Live:
    return Live(changes=container.stores.changes, stopping=container.stopping, heartbeat=container.stream_heartbeat)


Streams = Annotated[Live, Depends(_live)]


async def _listen(verification_id: str, client: Client, live: Streams) -> AsyncIterator[Feed]:
    """Listen until the answer has been sent, or whoever asked has gone."""
    async with live.changes.listen(verification_id, client=client) as feed:
        yield feed


_ID = str(example_of(schemas.Verification)["verification_id"])
_EXAMPLE = b"".join(
    (
        format_sse_event(retry=_RECONNECT_MS),
        format_sse_event(
            id="2", event="verification", data_str=json.dumps(example_of(schemas.Verification), ensure_ascii=False)
        ),
        KEEPALIVE_COMMENT,
        _expired(_ID),
    )
).decode()
_ANSWERS: Answers = {
    **answers(
        HTTPStatus.OK,
        problems=("unauthorized", "verification-not-found", "too-many-listeners", "store-unavailable"),
    ),
    HTTPStatus.OK.value: {
        "description": "Events, as they happen.",
        "content": {
            EventStream.media_type: {
                "schema": {"type": "string"},
                "examples": {"stream": {"summary": "A call that rings, and nobody types the code", "value": _EXAMPLE}},
            }
        },
    },
    HTTPStatus.NO_CONTENT.value: {
        "description": "The last event that you have (`Last-Event-ID`) was the last of all: do not connect again."
    },
}


@router.get(
    "/{verification_id}/events",
    response_class=EventStream,
    operation_id="followVerification",
    summary="Follow a verification and its latest call as they change",
    responses=_ANSWERS,
)
async def follow(
    *,
    verification_id: str,
    client: Client,
    container: ContainerDep,
    live: Streams,
    feed: Annotated[Feed, Depends(_listen)],
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID", description="the id of the last event that you have; its state is not told again"
        ),
    ] = None,
) -> Response:
    """Stream the state as server-sent events: at once the present one, then each that follows.

    An event `verification` has the same JSON as `GET /verify/{verification_id}`, in one line, and the version of the
    state as its id; of several changes at once only the last may be told. The stream ends with the event that tells
    `verified`, `locked`, `canceled` or `failed`, or with an event `expired`. When it ends before, connect again, as
    `EventSource` does by itself. In silence a comment comes every 15 seconds.

    A browser's `EventSource` sends no API key: let your backend pass the stream on.
    """
    verification = await container.service.read(client=client, verification_id=verification_id)
    if is_final(verification) and last_event_id == str(verification.version):
        return Response(status_code=HTTPStatus.NO_CONTENT)  # on which EventSource gives up
    story = Story(service=container.service, live=live, feed=feed, verification=verification, told=last_event_id)
    return EventStream(story.events(), headers=_HEADERS)
