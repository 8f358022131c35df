"""The page of docs/integration/javascript.md in a browser: repeated clicks and lost responses."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route

DOCUMENT = Path(__file__).parents[2] / "docs" / "integration" / "javascript.md"
SITE = "http://localhost:1/"  # a closed port: every request is answered by the test


class Site:
    """The page and its requests; each request waits until the test answers it."""

    def __init__(self, page: Page) -> None:
        (html,) = re.findall(r"```html\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
        self.page = page
        self.waiting: list[Route] = []
        self.keys: list[str] = []
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.route(SITE, lambda route: route.fulfill(content_type="text/html", body=html))
        page.route(f"{SITE}sign-up/events", lambda route: route.fulfill(status=204))
        for path in ("sign-up/call", "sign-up"):
            page.route(SITE + path, self._hold)
        page.goto(SITE)

    def _hold(self, route: Route) -> None:
        self.waiting.append(route)
        self.keys.append(route.request.headers["idempotency-key"])

    def answer(self, status: int, **body: object) -> None:
        self.waiting.pop(0).fulfill(status=status, body=json.dumps(body))
        self.page.wait_for_timeout(100)

    def lose(self) -> None:
        self.waiting.pop(0).abort()
        self.page.wait_for_timeout(100)

    def press(self, name: str, times: int = 1) -> None:
        self.page.get_by_role("button", name=name).click(click_count=times, delay=1)
        self.page.wait_for_timeout(100)

    @property
    def said(self) -> str:
        return self.page.get_by_role("status").inner_text()


@pytest.fixture
def site(browser: Browser) -> Iterator[Site]:
    with browser.new_context() as context:
        yield Site(context.new_page())


def test_a_double_click_sends_one_request(site: Site) -> None:
    site.page.get_by_label("Your phone").fill("+79001234567")
    site.press("Call me", times=2)
    site.page.get_by_label("Your phone").press("Enter")
    assert len(site.waiting) == 1

    site.answer(201, phone="+7900•••4567", resend_in=60)
    assert site.said == "We are calling +7900•••4567."
    site.page.get_by_label("The code you hear").fill("123456")
    site.press("Sign up", times=3)
    assert len(site.waiting) == 1
    site.answer(200, say="Welcome!")
    site.press("Sign up")  # again, after it has succeeded
    site.answer(200, say="Welcome!")
    assert (site.said, site.errors) == ("Welcome!", [])


@pytest.mark.parametrize("lost", [True, False])
def test_a_failed_attempt_is_retried_with_the_same_idempotency_key(site: Site, *, lost: bool) -> None:
    site.page.get_by_label("Your phone").fill("+79001234567")
    site.press("Call me")
    if lost:
        site.lose()
        assert site.said == "There was no answer. Please try again."
    else:
        site.answer(503, say="It does not work just now. Please try later.")
    site.press("Call me")
    site.answer(429, say="Please try again in 5 s.")
    site.press("Call me")
    site.answer(422, say="Please check the number.")
    site.page.get_by_label("Your phone").fill("+79001234568")
    site.press("Call me")

    first, repeated, *later = site.keys
    assert first == repeated
    assert len({first, *later}) == 3
    assert site.errors == []
