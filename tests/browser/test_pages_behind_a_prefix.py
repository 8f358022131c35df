"""The pages in a real browser, behind a proxy that strips a path prefix."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.browser.conftest import THIS, Visit
from tests.browser.test_demo_page import call
from tests.browser.test_docs_page import execute, operation
from tests.e2e.conftest import Demo, running

PREFIX = "/verify"  # also the beginning of the API's paths


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Demo]:
    with running(tmp_path, PUBLIC_URL=f"https://site.example{PREFIX}", **THIS) as demo:
        yield demo


@pytest.fixture
def visit(browser: Browser, service: Demo) -> Iterator[Visit]:
    """Open a visit whose requests lose the prefix on their way; a request without it is an error."""
    visit = Visit(browser, service.base_url)

    def strip(route: Route) -> None:
        path = route.request.url.removeprefix(service.base_url)
        if path.startswith(f"{PREFIX}/"):
            route.continue_(url=service.base_url + path.removeprefix(PREFIX))
        else:
            visit.wrong.append(f"request to {path}")
            route.abort()

    visit.page.route(f"{service.base_url}/**", strip)
    yield visit
    visit.context.close()
    assert visit.wrong == []


def test_a_number_is_confirmed_on_the_demo_page(visit: Visit, number: str) -> None:
    page = visit.page
    page.goto(f"{PREFIX}/demo")
    page.wait_for_selector("html[data-ready]")

    call(page, number)
    visit.type_code(visit.answer())

    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()
    assert f"{PREFIX}/verify/start" in [url for _, url, _ in visit.requests]


def test_the_console_shows_a_call(visit: Visit, service: Demo) -> None:
    service.post("/verify/start", phone="+79001234567")
    page = visit.page
    page.goto(f"{PREFIX}/console")
    page.locator("#attempts .row").first.click()

    expect(page.locator("#attempt .advice")).to_be_visible()
    assert f"{PREFIX}/readyz" in [url for _, url, _ in visit.requests]


def test_an_operation_can_be_executed_on_the_docs_page(visit: Visit) -> None:
    visit.page.goto(f"{PREFIX}/docs")
    start = operation(visit.page, "POST", "/verify/start")
    assert execute(start) == "201"
    assert f"location: {PREFIX}/verify/vrf_" in start.locator(".live-responses-table").inner_text()
