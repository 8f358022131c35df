"""Serves an app on a loopback port in the running event loop, so that the sandbox is reached over real HTTP."""

import asyncio
import socket
from contextlib import AsyncExitStack
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

_STOP_WITHIN = 1  # seconds for the requests that run when the server stops
HANG_UP = "sandbox.hang_up"  # an ASGI extension: a callable that closes the connection of a request


class SandboxServer:
    """Serves an app on a free port of 127.0.0.1 while the context is open.

    The lifespan of a Starlette app encloses the serving. A request can close its connection with ``HANG_UP``.
    """

    url: str  # http://127.0.0.1:port, set on entering

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._stack = AsyncExitStack()
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._serve_one,
                interface="asgi3",
                ws="none",
                lifespan="off",
                workers=1,  # whatever WEB_CONCURRENCY says, which is not about this server
                proxy_headers=False,  # nor is FORWARDED_ALLOW_IPS
                date_header=False,  # it would be updated by uvicorn's main loop only
                log_config=None,
                access_log=False,  # for the whole process: uvicorn has one access logger, and the app logs requests
            )
        )

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            # uvicorn would end the process if the lifespan failed.
            if isinstance(self._app, Starlette):
                await stack.enter_async_context(self._app.router.lifespan_context(self._app))
            # asyncio turns off Nagle's algorithm only if the protocol is given; with it each answer takes 40 ms more.
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            stack.callback(listener.close)
            listener.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            # Not uvicorn's serve(), which also takes the signals of the process.
            self._server.config.load()
            self._server.lifespan = self._server.config.lifespan_class(self._server.config)
            await self._server.startup(sockets=[listener])
            stack.push_async_callback(self._stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _stop(self) -> None:
        # Not uvicorn's shutdown(), which waits for stalled requests, and pauses a tenth of a second in any case.
        for server in self._server.servers:
            server.close()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # the requests learn of it
        if requests := {*self._server.server_state.tasks}:
            _, running = await asyncio.wait(requests, timeout=_STOP_WITHIN)
            for request in running:
                request.cancel()

    async def _serve_one(self, scope: Scope, receive: Receive, send: Send) -> None:
        def hang_up() -> None:
            for connection in self._server.server_state.connections:
                if connection.transport.get_extra_info("peername") == scope["client"]:
                    connection.transport.close()

        await self._app({**scope, "extensions": {**scope.get("extensions", {}), HANG_UP: hang_up}}, receive, send)
