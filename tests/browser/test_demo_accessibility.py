"""The demo page has no axe-core violation: in every state, in light and dark, at desktop and phone width."""

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped] # it has no types
from playwright.sync_api import Page, expect

from tests.browser.conftest import DESKTOP, PHONE, TIMEOUT_MS, Visiting

expect.set_options(timeout=TIMEOUT_MS)

axe = Axe()


def assert_accessible(page: Page, state: str) -> None:
    """Check a state in both colour schemes."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        expect(page.locator("html")).to_have_attribute("data-theme", scheme)
        results = axe.run(page)
        assert results.response["passes"], state  # axe has run
        found = [
            (violation["id"], node["html"][:120], node.get("failureSummary"))
            for violation in results.response["violations"]
            for node in violation["nodes"]
        ]
        assert found == [], (state, scheme)


@pytest.mark.parametrize(("width", "locale"), [(DESKTOP, "en-US"), (PHONE, "ru-RU")], ids=["desktop", "phone"])
def test_no_state_of_a_voice_call_has_a_violation(
    visiting: Visiting, number: str, width: dict[str, int], locale: str
) -> None:
    visit = visiting(viewport=width, locale=locale)
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


@pytest.mark.parametrize(("width", "locale"), [(DESKTOP, "ru-RU"), (PHONE, "en-US")], ids=["desktop", "phone"])
def test_neither_a_flash_call_nor_a_reverse_call_has_a_violation(
    visiting: Visiting, number: str, width: dict[str, int], locale: str
) -> None:
    page = visiting(viewport=width, locale=locale).open_demo()
    page.locator("#outcome").select_option("+79000000010")
    page.locator("#call").click()
    page.locator("#phone[data-state=flash]").wait_for()
    assert_accessible(page, "flash call in place of the voice")

    page.locator("#other").click()
    page.locator("[name=channel][value=reverse_call]").check()
    page.locator("#number").fill(number)
    page.locator("#call").click()
    page.locator("#phone[data-state=dial]").wait_for()
    assert_accessible(page, "reverse call")
