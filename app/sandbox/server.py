"""Serves an app on a loopback port, inside the running event loop: how the stand-in is reached over real HTTP."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from itertools import count
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

HANG_UP = "sandbox.hang_up"  # an ASGI extension: closes the connection that a request came by


class SandboxServer:
    """Serves an app on a free port of 127.0.0.1, inside the running event loop, while the context is open.

    The lifespan of a Starlette app goes around the serving. Each request can hang up on its client: ``HANG_UP``.
    """

    _url: str
    _server: "_QuietServer"
    _serving: asyncio.Task[None]

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """Where it listens, as ``http://127.0.0.1:port``."""
        return self._url

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            # Not by uvicorn: where a lifespan fails to start, uvicorn ends the process.
            if isinstance(self._app, Starlette):
                await stack.enter_async_context(self._app.router.lifespan_context(self._app))
            await self._start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._stack:
            self._server.leave()
            await self._serving

    async def _start(self) -> None:
        listener = _listen()
        self._url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = _QuietServer(self._app)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._serving.add_done_callback(lambda _: self._server.settled.set())
        await self._server.settled.wait()
        if not self._server.started:
            listener.close()
            await self._serving  # raises what kept it from starting


def _listen() -> socket.socket:
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it each answer takes 40 ms longer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    return listener


class _QuietServer(uvicorn.Server):
    """A uvicorn that leaves the process alone: it takes no signals, and hangs up on everybody when it goes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        super().__init__(
            uvicorn.Config(
                self._serve_one,
                interface="asgi3",
                ws="none",
                lifespan="off",
                workers=1,  # whatever WEB_CONCURRENCY says, which is not about this server
                proxy_headers=False,  # nor does FORWARDED_ALLOW_IPS
                log_config=None,
                access_log=False,  # for the whole process: uvicorn keeps one access logger, and the app logs for itself
                timeout_graceful_shutdown=1,
            )
        )
        self.settled = asyncio.Event()
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Stop serving, now: uvicorn by itself would notice within a tenth of a second."""
        self.should_exit = True
        self._leaving.set()

    async def _serve_one(self, scope: Scope, receive: Receive, send: Send) -> None:
        extensions = {**scope.get("extensions", {}), HANG_UP: self._hang_up_on(scope["client"])}
        await self._app({**scope, "extensions": extensions}, receive, send)

    def _hang_up_on(self, client: tuple[str, int]) -> Callable[[], None]:
        def hang_up() -> None:
            for connection in self.server_state.connections:
                if connection.transport.get_extra_info("peername") == client:
                    connection.transport.close()

        return hang_up

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none: they belong to the server in whose event loop this one runs."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell whoever waits for it."""
        await super().startup(sockets)
        self.settled.set()

    async def main_loop(self) -> None:
        """Tick ten times a second, as uvicorn's own does, until it is time to leave."""
        for tick in count():
            await self.on_tick(tick)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._leaving.wait()
                    return

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Hang up first: requests that are stalled on purpose would keep uvicorn waiting for them."""
        for connection in list(self.server_state.connections):
            connection.transport.close()
        await super().shutdown(sockets)
