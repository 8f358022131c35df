"""The demo page: flash call, reverse call, fallback to the next channel, and the event stream."""

import re
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import THIS, TIMEOUT_MS, Visit
from tests.e2e.conftest import running

expect.set_options(timeout=TIMEOUT_MS)

FLASH = re.compile("^Caller.s number$")
# The state of a call is polled, so on a busy machine only the last state is certain to be seen.
MOVED_ON = re.compile("Your phone is ringing|The call got through|The call was made")
ID = "/verify/vrf_[0-9a-f]+"


def choose(page: Page, channel: str | re.Pattern[str], number: str | None = None) -> None:
    page.get_by_label(channel, exact=True).check()
    if number:
        page.locator("#number").fill(number)
    page.locator("#call").click()


def assert_verified(page: Page) -> None:
    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()


def test_the_code_of_a_flash_call_is_in_the_caller_number(visit: Visit, number: str) -> None:
    page = visit.open_demo()

    choose(page, FLASH, number)

    expect(page.get_by_role("heading", name="Enter the last 4 digits")).to_be_visible()
    expect(page.locator("#boxes input")).to_have_count(4)
    expect(page.locator("#phone")).to_have_attribute("data-state", "flash")
    expect(page.locator("#answer")).to_be_hidden()
    code = visit.read()
    assert re.sub(r"\D", "", page.locator("#phone-who").inner_text()).endswith(code)
    page.get_by_role("button", name="Decline").click()
    expect(page.locator("#phone")).to_have_attribute("data-state", "flashed")
    visit.type_code(code)
    assert_verified(page)
    assert visit.sent("POST", "/verify/start")[0]["channels"][0] == "flash_call"


def test_a_flash_call_that_never_arrives_does_not_ring(visit: Visit) -> None:
    page = visit.open_demo()
    page.get_by_label(FLASH).check()
    page.locator("#outcome").select_option(label="Nobody answers")

    page.locator("#call").click()

    expect(page.locator("#phone")).to_have_attribute("data-state", "lost")
    expect(page.locator("#phone-what")).to_have_text("No call arrived")
    expect(page.locator("#caption")).to_be_hidden()


def test_a_reverse_call_is_dialed_and_confirmed_by_a_check_without_a_code(visit: Visit, number: str) -> None:
    page = visit.open_demo()

    choose(page, "You call", number)

    expect(page.get_by_role("heading", name="Call this number")).to_be_focused()
    expect(page.locator("#dial")).to_have_text(re.compile(r"^\+7 800 555-01-0\d$"))
    expect(page.locator("#code-form")).to_be_hidden()
    expect(page.locator("#phone-who")).to_have_text(page.locator("#dial").inner_text())
    page.get_by_role("button", name="Dial").click()
    assert_verified(page)
    expect(page.locator("#phone")).to_have_attribute("data-state", "dialed")
    (check,) = visit.sent("POST", "/verify/check")
    assert set(check) == {"verification_id"}


def test_a_refused_voice_call_falls_back_to_the_next_channel(visit: Visit) -> None:
    page = visit.open_demo()
    page.locator("#outcome").select_option("+79000000010")

    page.locator("#call").click()

    expect(page.locator("#switched")).to_have_text("We chose another way for this number.")
    expect(page.locator("#boxes input")).to_have_count(4)
    visit.type_code(visit.read())
    assert_verified(page)


def test_operator_channels_can_override_the_chosen_channel(visit: Visit) -> None:
    page = visit.open_demo()
    page.get_by_label(FLASH).check()
    page.locator("#outcome").select_option(label="MTS: flash calls do not arrive")

    page.locator("#call").click()

    expect(page.get_by_role("heading", name="Call this number")).to_be_visible()
    expect(page.locator("#switched")).to_be_visible()


def test_a_resend_as_a_reverse_call_is_a_new_verification(browser: Browser, tmp_path: Path) -> None:
    with running(tmp_path, CHANNELS="voice,reverse_call", CALL_COOLDOWNS_SECONDS="2", **THIS) as service:
        visit = Visit(browser, service.base_url)
        page = visit.open_demo()
        page.locator("#outcome").select_option(label="The line is busy")

        page.locator("#call").click()
        expect(page.locator("#progress")).to_have_text("The line was busy")
        page.get_by_role("button", name="Call again", exact=True).click()
        expect(page.get_by_role("heading", name="Call this number")).to_be_visible()
        expect(page.locator("#renewed")).to_be_hidden()
        page.get_by_role("button", name="Dial").click()

        assert_verified(page)
        first, second = visit.sent("POST", "/verify/start")
        (check,) = visit.sent("POST", "/verify/check")
        visit.context.close()

    assert "verification_id" not in first
    assert check["verification_id"] != second["verification_id"]
    assert visit.wrong == []


def test_only_outcomes_that_fit_the_channel_can_be_chosen(visit: Visit) -> None:
    page = visit.open_demo()
    page.locator("#outcome").select_option("+79000000001")

    page.get_by_label("You call", exact=True).check()

    expect(page.locator("#number")).to_have_value("+7 900 123-45-67")
    expect(page.locator("#outcome")).to_have_value("+79001234567")
    expect(page.locator("#outcome option", has_text="The line is busy")).to_have_count(0)


def test_the_event_stream_updates_the_page_without_polling(visit: Visit, number: str) -> None:
    page = visit.open_demo()

    choose(page, "Spoken", number)

    expect(page.locator("#progress")).to_have_text(MOVED_ON)
    expect(page.locator("#entries")).to_contain_text("/events")
    visit.type_code(visit.answer())
    assert_verified(page)
    assert visit.sent("GET", f"{ID}/events") == [None]
    assert visit.sent("GET", ID) == []


def test_an_expired_event_ends_the_verification_on_the_page(visit: Visit, number: str) -> None:
    page = visit.open_demo()
    stream = "event: expired\ndata: {}\n\n"
    page.route("**/verify/*/events", lambda route: route.fulfill(content_type="text/event-stream", body=stream))

    choose(page, "Spoken", number)

    expect(page.get_by_role("heading", name="The code has expired")).to_be_visible()


def test_the_page_polls_every_second_if_the_event_stream_is_refused(visit: Visit, number: str) -> None:
    visit.expected_statuses = {503}
    page = visit.open_demo()
    page.route("**/verify/*/events", lambda route: route.fulfill(status=503))

    choose(page, "Spoken", number)

    expect(page.locator("#progress")).to_have_text(MOVED_ON)
    assert visit.sent("GET", ID)
