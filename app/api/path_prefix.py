"""The middleware for a proxy that strips a path prefix: restores it in the service's own addresses."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class PathPrefix:
    """A pure ASGI middleware that sets ``root_path``, and prefixes a ``Location`` that is a path of this service.

    The prefix, such as ``/verify-service``, is from the settings alone: a header of the request cannot be trusted.
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
                message["headers"] = [
                    (name, self._prefix.encode() + value if name == b"location" and value[:1] == b"/" else value)
                    for name, value in message["headers"]
                ]
            await send(message)

        # By the ASGI specification ``path`` begins with ``root_path``.
        scope = {**scope, "root_path": self._prefix, "path": self._prefix + scope["path"]}
        await self.app(scope, receive, send_prefixed)
