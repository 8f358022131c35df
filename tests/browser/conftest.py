"""Fixtures of the browser tests: Debian's Chromium, a running service, and visits that fail on unexpected errors."""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request, sync_playwright

from tests.e2e.conftest import Demo, running

# The service runs in another folder; PYTHONPATH makes it use this checkout and not an installed package.

RULES = {"OPERATOR_CHANNELS": "mts:reverse_call"}
THIS = {"PYTHONPATH": str(Path(__file__).parents[2]), "LOG_LEVEL": "error"}

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
NARROW = {"width": 320, "height": 640}
# A test should fail soon, but a call takes five seconds, and the machine may be busy.
TIMEOUT_MS = 30_000

_numbers = itertools.count(100)


def launch(playwright: Playwright) -> Browser:
    """Start the system's browser: Playwright's own would have to be downloaded."""
    if not Path(CHROMIUM).exists():
        pytest.fail(
            f"There is no browser at {CHROMIUM}: on Debian, `apt-get install chromium` puts it there;"
            " CHROMIUM=/path names another one.",
            pytrace=False,
        )
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)


class Visit:
    """A page in its own browser context; ``wrong`` collects errors and requests to other hosts."""

    def __init__(self, browser: Browser, base_url: str, **options: object) -> None:
        self.base_url = base_url
        self.wrong: list[str] = []
        self.expected_statuses: set[int] = set()
        self.requests: list[tuple[str, str, str | None]] = []
        given = {"viewport": DESKTOP, "locale": "en-US", "color_scheme": "light", **options}
        self.context = browser.new_context(base_url=base_url, **given)  # type: ignore[arg-type] # as they are documented
        self.context.set_default_timeout(TIMEOUT_MS)
        self.page = self.context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._asked)

    def _heard(self, message: ConsoleMessage) -> None:
        status = re.search(r"Failed to load resource: .* status of (\d+)", message.text)
        expected = status and int(status[1]) in self.expected_statuses
        if message.type in {"error", "warning"} and not expected:
            self.wrong.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((f"{self.base_url}/", "data:")):
            self.wrong.append(f"request to {request.url}")
        self.requests.append((request.method, request.url.removeprefix(self.base_url), request.post_data))

    def open_demo(self) -> Page:
        self.page.goto("/demo")
        self.page.wait_for_selector("html[data-ready]")
        return self.page

    def answer(self) -> str:
        """Answer the virtual phone, and return the code that is heard."""
        self.page.locator("#phone[data-state=ringing]").wait_for()
        self.page.locator("#answer").click()
        return self.read()

    def read(self) -> str:
        digits = self.page.locator("#caption [aria-hidden]")
        digits.first.wait_for()
        return "".join(digits.all_text_contents())

    def sent(self, method: str, path: str) -> list[Any]:
        """Return the bodies of the page's requests whose path matches the pattern ``path``."""
        return [
            json.loads(body) if body else None
            for used, url, body in self.requests
            if used == method and re.fullmatch(path, url)
        ]

    def type_code(self, code: str) -> None:
        self.page.locator("#boxes input").first.focus()
        self.page.keyboard.type(code)


Visiting = Callable[..., Visit]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running(tmp_path_factory.mktemp("browser"), CALL_COOLDOWNS_SECONDS="2", **RULES, **THIS) as demo:
        yield demo


@pytest.fixture
def visiting(browser: Browser, service: Demo) -> Iterator[Visiting]:
    """Return a function that opens visits; at the end, none of them may have had an error."""
    visits: list[Visit] = []

    def visit(**options: object) -> Visit:
        visits.append(Visit(browser, service.base_url, **options))
        return visits[-1]

    yield visit
    for done in visits:
        done.context.close()
    assert [wrong for done in visits for wrong in done.wrong] == []


@pytest.fixture
def visit(visiting: Visiting) -> Visit:
    return visiting()


@pytest.fixture
def number() -> str:
    """Return a number that no other test calls, in its own range: limits count by number and by range."""
    return f"+7 900 {next(_numbers)}-45-67"
