"""A second SIGINT closes the event loop over requests in progress: what they hold must not be used any more."""

from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

from starlette.types import Receive, Scope, Send

from app.server.connections import Connections, HttpLimits
from app.server.http_parser import RequestHead
from app.server.http_protocol import HttpProtocol
from app.server.http_request import HttpRequest


class Suspended:
    """Never ends."""

    def __await__(self) -> Any:  # noqa: ANN401 - a generator without results
        yield


class UnusableProtocol:
    """The protocol of a connection that the loop has closed."""

    eof = False

    def fail(self, request: HttpRequest) -> None:
        raise AssertionError("the connection was used")


def test_a_request_that_is_destroyed_does_not_use_its_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Suspended()

    head = SimpleNamespace(keep_alive=True, expects_continue=False)
    request = HttpRequest(cast(HttpProtocol, UnusableProtocol()), cast(RequestHead, head))
    running: Coroutine[Any, Any, None] = request.run(app, {})
    running.send(None)

    running.close()


def test_an_event_of_a_connection_is_reported_without_a_running_loop() -> None:
    Connections(HttpLimits()).report("http.connection_dropped", "write")
