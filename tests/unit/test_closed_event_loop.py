"""A second SIGINT closes the event loop over requests in progress: what they hold must not be used any more."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

from redis.asyncio import Redis
from starlette.types import Receive, Scope, Send

from app.server.connections import Connections, HttpLimits
from app.server.http_parser import RequestHead
from app.server.http_protocol import HttpProtocol
from app.server.http_request import HttpRequest
from app.store.node_runner import NodeRunner
from app.store.scripts import PROBE, ScriptRunner


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


def test_a_connection_to_redis_that_is_destroyed_while_it_opens_answers_nobody() -> None:
    class Pool:
        async def get_connection(self) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            except GeneratorExit:  # as the library does, which closes its transport on the way
                raise RuntimeError("Event loop is closed") from None

    loop = asyncio.new_event_loop()
    runner = ScriptRunner(cast(Redis, SimpleNamespace(connection_pool=Pool())), timeout=1)
    waiting = loop.create_task(runner.run(PROBE, [], []))
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    assert isinstance(runner._runner, NodeRunner)
    recovery = runner._runner._recovery
    assert recovery
    loop.close()

    cast(Coroutine[Any, Any, None], recovery.get_coro()).close()

    assert not waiting.done()
    for task in (waiting, recovery):
        task._log_destroy_pending = False  # type: ignore[union-attr] # that it never ends is what is tested
