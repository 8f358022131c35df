"""The demo page as axe-core sees it, in every state, in light and dark, at desktop and phone width: no violation."""

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped] # it has no types
from playwright.sync_api import Page, expect

from tests.browser.conftest import DESKTOP, PATIENCE_MS, PHONE, Visiting

expect.set_options(timeout=PATIENCE_MS)

axe = Axe()


def assert_accessible(page: Page, state: str) -> None:
    results = axe.run(page)
    assert results.response["passes"], state  # it did look
    found = [
        (violation["id"], node["html"][:120], node.get("failureSummary"))
        for violation in results.response["violations"]
        for node in violation["nodes"]
    ]
    assert found == [], state


@pytest.mark.parametrize("locale", ["en-US", "ru-RU"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_state_of_the_page_has_a_violation(
    visiting: Visiting, number: str, scheme: str, width: dict[str, int], locale: str
) -> None:
    visit = visiting(color_scheme=scheme, viewport=width, locale=locale, reduced_motion="reduce")
    visit.expected_statuses = {422}
    page = visit.open_demo()
    assert_accessible(page, "number")

    page.locator("#number").fill("12")
    page.locator("#call").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert_accessible(page, "problem")

    page.locator("#number").fill(number)
    page.locator("#call").click()
    page.locator("#phone[data-state=ringing]").wait_for()
    assert_accessible(page, "ringing")

    code = visit.answer()
    visit.type_code("000000" if code != "000000" else "111111")
    expect(page.locator("#checks")).to_have_attribute("data-tone", "bad")
    assert_accessible(page, "wrong code")

    visit.type_code(code)
    expect(page.locator("#end-title")).to_be_focused()
    page.locator("#entries summary").first.click()
    assert_accessible(page, "verified, with a line of the journal open")
