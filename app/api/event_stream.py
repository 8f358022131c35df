"""The route that sends the changes of a verification as server-sent events (WHATWG HTML, section 9.2)."""

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
from pydantic_core import to_json

from app.api import schemas
from app.api.dependencies import Client, ContainerDep
from app.api.responses import answers
from app.container import Container
from app.verification.errors import StoreUnavailable, VerificationNotFound
from app.verification.model import Call, Status, Verification

router = APIRouter(prefix="/verify", tags=["verify"])

_MEDIA_TYPE = "text/event-stream"
_RECONNECT_MS = 2000
_AFTER_EXPIRY = 0.01  # seconds; Redis drops a key within milliseconds of its time
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter keeps nginx from holding events back


@dataclass(slots=True, kw_only=True)
class EventStream:
    """The events of one verification for one client.

    ``last_id`` is the id of the last event that the client has. ``sent_calls`` are the calls of the last state: a
    refund changes them without a new version, for a start that was refused leaves no trace.
    """

    container: Container
    change: asyncio.Event
    verification: Verification
    last_id: str | None = None
    sent_calls: tuple[Call, ...] | None = None

    async def events(self) -> AsyncIterator[bytes]:
        """Return the present state, then each newer one, until it is final or expired or the service stops."""
        yield format_sse_event(retry=_RECONNECT_MS)
        expiry, heartbeat = self._expiry(), time.monotonic() + self.container.stream_heartbeat
        while True:
            event = self._changed() or (KEEPALIVE_COMMENT if heartbeat <= time.monotonic() else None)
            if event:
                yield event
                heartbeat = time.monotonic() + self.container.stream_heartbeat
            if self.verification.status is not Status.PENDING:
                return  # it cannot change any more, but only expire
            await self._wait(until=expiry if time.monotonic() < expiry < heartbeat else heartbeat)
            if self.container.stopping.is_set():
                return
            try:
                self.verification = await self.container.service.read(
                    client=self.verification.client, verification_id=self.verification.id, follow=True
                )
                expiry = self._expiry()
            except StoreUnavailable:
                continue  # it is read again with the next change or heartbeat
            except VerificationNotFound:
                yield _expired(self.verification.id)
                return

    def _changed(self) -> bytes | None:
        """Return the event of the present state, if the client does not have it."""
        version, sent_calls = str(self.verification.version), self.sent_calls
        self.sent_calls = self.verification.calls
        if version == self.last_id and sent_calls in {None, self.sent_calls}:
            return None
        self.last_id = version
        return _event(version, to_json(schemas.view_verification(self.verification)).decode())

    def _expiry(self) -> float:
        """Return when it will have expired, by this process's clock: no change is published then."""
        left = self.verification.expires_at - self.verification.observed_at
        return time.monotonic() + left.total_seconds() + _AFTER_EXPIRY

    async def _wait(self, *, until: float) -> None:
        """Wait for a change, or until the time is over or the service stops."""
        seconds = max(0, until - time.monotonic())
        waits = [asyncio.create_task(event.wait()) for event in (self.change, self.container.stopping)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.change.clear()
            for wait in waits:
                wait.cancel()


def _event(version: str, data: str) -> bytes:
    return format_sse_event(id=version, event="verification", data_str=data)


def _expired(verification_id: str) -> bytes:
    data = {"verification_id": verification_id, "status": "expired"}
    return format_sse_event(event="expired", data_str=json.dumps(data, separators=(",", ":")))


async def _listen(verification_id: str, client: Client, container: ContainerDep) -> AsyncIterator[asyncio.Event]:
    """Listen until the response has been sent, or the client has disconnected."""
    async with container.stores.changes.listen(verification_id, client=client) as change:
        yield change


_STATE = schemas.example_of(schemas.Verification)
_EXAMPLE = (
    format_sse_event(retry=_RECONNECT_MS)
    + _event("2", json.dumps(_STATE, ensure_ascii=False))
    + KEEPALIVE_COMMENT
    + _expired(_STATE["verification_id"])
).decode()
_EXAMPLES = {"stream": {"summary": "A call rings, and the code is not checked", "value": _EXAMPLE}}


@router.get(
    "/{verification_id}/events",
    response_class=StreamingResponse,  # FastAPI's own for events takes only generators, which cannot answer 204
    operation_id="followVerification",
    summary="Follow a verification and its latest call as they change",
    responses={
        **answers(
            HTTPStatus.NO_CONTENT,
            problems=("unauthorized", "verification-not-found", "too-many-listeners", "store-unavailable"),
        ),
        HTTPStatus.OK.value: {
            "description": "Events, as they happen.",
            "content": {_MEDIA_TYPE: {"schema": {"type": "string"}, "examples": _EXAMPLES}},
        },
        HTTPStatus.NO_CONTENT.value: {
            "description": "The last event that you have (`Last-Event-ID`) was the last of all: do not connect again."
        },
    },
)
async def follow(
    *,
    verification_id: str,
    client: Client,
    container: ContainerDep,
    change: Annotated[asyncio.Event, Depends(_listen)],
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", description="the id of the last event that you have; it is not sent again"),
    ] = None,
) -> Response:
    """Stream the state as server-sent events: at once the present one, then each that follows.

    An event `verification` has the same JSON as `GET /verify/{verification_id}`, in one line, and the version of the
    state as its id; of several changes at once only the last may be sent. The stream ends with the event whose status
    is `verified`, `locked`, `canceled` or `failed`, or with an event `expired`. When it ends before, connect again, as
    `EventSource` does by itself. After 15 seconds without an event a comment is sent.

    A browser's `EventSource` sends no API key: let your backend pass the stream on.
    """
    verification = await container.service.read(client=client, verification_id=verification_id, follow=True)
    if verification.status is not Status.PENDING and last_event_id == str(verification.version):
        return Response(status_code=HTTPStatus.NO_CONTENT)  # on which EventSource gives up
    stream = EventStream(container=container, change=change, verification=verification, last_id=last_event_id)
    return StreamingResponse(stream.events(), headers=_HEADERS, media_type=_MEDIA_TYPE)
