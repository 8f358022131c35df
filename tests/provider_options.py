"""The options of a provider's client that have to do with HTTP, for tests that are about something else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from app.providers.connections import Endpoint, HttpAnswer
from app.providers.http import HttpOptions, make_transport


@dataclass
class HttpxTransport:
    """The ``Transport`` that sends requests by one of httpx, such as a mock of respx."""

    transport: httpx.AsyncBaseTransport

    async def send(
        self, endpoint: Endpoint, content: bytes, headers: Mapping[str, str], *, connect_timeout: float
    ) -> HttpAnswer:
        request = httpx.Request(
            endpoint.method,
            endpoint.url,
            headers={**endpoint.headers, **headers},
            content=content or None,
            extensions={"timeout": {"connect": connect_timeout}},
        )
        response = await self.transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        body = b"".join([chunk async for chunk in response.stream])  # as it was sent, and so packed if it was
        return HttpAnswer(response.status_code, {name.lower(): value for name, value in response.headers.raw}, body)

    async def aclose(self) -> None:
        await self.transport.aclose()


def http_options(**changed: Any) -> HttpOptions:  # noqa: ANN401 - those of a client
    """Return them as the settings have them by default, but for those that are given."""
    transport = changed.get("transport") or make_transport()
    return HttpOptions(
        connect_timeout=changed.get("connect_timeout", 3.0),
        timeout=changed.get("timeout", 10.0),
        max_connections=changed.get("max_connections", 100),
        transport=HttpxTransport(transport) if isinstance(transport, httpx.AsyncBaseTransport) else transport,
    )
