"""Puts back the path prefix that a proxy has stripped, in what the service tells of its own addresses."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class PathPrefix:
    """A pure ASGI middleware for a service that others reach under ``prefix``, such as ``/verify-service``.

    It sets the ``root_path`` of ASGI, which always is the beginning of ``path``, and puts it before a ``Location`` that
    is a path of this service. A prefix in a header would have to be believed, so it is taken from the settings alone.
    """

    def __init__(self, app: ASGIApp, *, prefix: str) -> None:
        self.app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connections pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_prefixed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(name, self._prefixed(name, value)) for name, value in message["headers"]]
            await send(message)

        await self.app(
            {**scope, "root_path": self._prefix, "path": self._prefix + scope["path"]}, receive, send_prefixed
        )

    def _prefixed(self, name: bytes, value: bytes) -> bytes:
        return self._prefix.encode() + value if name == b"location" and value.startswith(b"/") else value
