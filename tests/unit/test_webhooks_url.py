"""A webhook URL is requested byte for byte as configured, because signed URLs are compared by their bytes."""

import asyncio

import pytest
from pydantic import ValidationError

from app.settings.clients import ClientSettings
from app.webhooks.endpoint import WebhookEndpoint
from app.webhooks.sender import Outcome, WebhookSender
from tests.unit.test_webhooks_endpoint import EVENT
from tests.unit.test_webhooks_sender import listening

TARGETS = [
    "/",
    "/hooks/phone",
    "/a%2fb%2Fc",
    "/%7Euser/%7euser/~user",
    "/%41%62c/%C3%A9/%c3%a9",
    "/a+b/c%2Bd/e%20f",
    "/a;v=1/b,c/d=e/f:g/h@i/!$&'()*",
    "/a//b///",
    "//a",
    "/./a/../b/.",
    "/%2e%2e/a",
    "/100%/%zz/%",
    '/a|b^c`d{e}[f]\\g"h<i>',
    "/p?",
    "/p??",
    "/p?a=1&b=2&&c",
    "/p?X-Signature=Ab%2fC%2B%3d+%2F=&sig=a+b%20c",
    "/p?redirect=https://shop.example/a%3Fb%3Dc/d?e",
    "/p?q=%F0%9F%93%9E&empty=&=x",
    "/?",
    "/p;jsessionid=1?x;y",
]


async def requested(url_of: str) -> tuple[str, str]:
    """Deliver an event to a local server; return the request target and the Host header that it received."""
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with listening(answer) as receiver:
        url = url_of.format(port=receiver.port) if "{port}" in url_of else url_of
        endpoint = WebhookEndpoint(url, (b"s" * 32,))
        async with WebhookSender(allow_private=True, timeout=5) as sender:
            attempt = await sender.send(endpoint, EVENT)
    assert attempt.outcome is Outcome.DELIVERED, attempt
    lines = heads[0].decode().split("\r\n")
    host = next(line.partition(": ")[2] for line in lines if line.lower().startswith("host:"))
    return lines[0].removeprefix("POST ").removesuffix(" HTTP/1.1"), host.replace(str(receiver.port), "{port}")


@pytest.mark.parametrize("target", TARGETS)
async def test_path_and_query_are_sent_exactly_as_configured(target: str) -> None:
    base = "http://127.0.0.1:{port}"
    assert await requested(base + target.replace("{", "{{").replace("}", "}}")) == (target, "127.0.0.1:{port}")
    assert ClientSettings(webhook_url=f"https://shop.example{target}").webhook_url == f"https://shop.example{target}"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:{port}", "/"),
        ("http://127.0.0.1:{port}?a=%2f", "/?a=%2f"),
        ("HTTP://LOCALHOST:{port}/A", "/A"),
    ],
)
async def test_a_url_without_a_path_requests_the_root(url: str, target: str) -> None:
    assert (await requested(url))[0] == target


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/\u043a\u0440\u044e\u043a",
        "https://\u043c\u0430\u0433\u0430\u0437\u0438\u043d.\u0440\u0444/hook",
        "https://shop.example/a b",
        "https://shop.example/a\tb",
        "https://shop.example/a\r\nHost: other",
        "https://shop.example/a#b",
        "https://shop.example/a#",
        "https://shop.example:99999/",
        "https://me:secret@shop.example/",
        "https:///path",
        "ftp://shop.example/",
        "https://shop.example\\@other.example/",
        "https://shop%2eexample/",
        "https://[::1/",
    ],
)
def test_a_url_that_cannot_be_sent_unchanged_is_rejected(url: str) -> None:
    with pytest.raises(ValidationError):
        ClientSettings(webhook_url=url)
