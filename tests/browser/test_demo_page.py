"""The demo page in a real browser: from the number to every possible outcome."""

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import NARROW, PHONE, TIMEOUT_MS, Visit, Visiting

expect.set_options(timeout=TIMEOUT_MS)

WORDS = {
    "en-US": ("Call me", "Enter the code you hear", "Number confirmed", "5 attempts left"),
    "ru-RU": ("Позвоните мне", "Введите код из звонка", "Номер подтверждён", "Осталось 5 попыток"),
}


def call(page: Page, number: str) -> None:
    page.locator("#number").fill(number)
    page.locator("#call").click()
    page.locator("#boxes input").first.wait_for()


def choose(page: Page, ending: str) -> None:
    """Choose the outcome of the call, by the last digits of its magic number."""
    page.locator("#outcome").select_option(f"+7900000000{ending}")


def wrong(code: str) -> str:
    return code[:-1] + str((int(code[-1]) + 1) % 10)


@pytest.mark.parametrize("locale", ["en-US", "ru-RU"])
def test_a_number_is_confirmed_in_the_language_of_the_browser(visiting: Visiting, number: str, locale: str) -> None:
    button, heading, end, attempts = WORDS[locale]
    visit = visiting(locale=locale)
    page = visit.open_demo()

    expect(page.locator("#call")).to_have_text(button)
    call(page, number)
    expect(page.get_by_role("heading", name=heading)).to_be_visible()
    expect(page.locator("#checks")).to_have_text(attempts)
    expect(page.locator("#boxes input")).to_have_count(6)
    expect(page.locator("#again")).to_have_attribute("aria-disabled", "true")
    visit.type_code(visit.answer())

    expect(page.get_by_role("heading", name=end, exact=True)).to_be_focused()
    expect(page.locator("#end-hint")).to_contain_text(number)
    expect(page.locator("#token")).to_have_text(re.compile(r"^eyJ[\w-]+\.[\w-]+\.[\w-]+$"))
    expect(page.locator("html")).to_have_attribute("lang", locale[:2])


def test_a_wrong_code_uses_an_attempt_and_the_right_one_still_works(visit: Visit, number: str) -> None:
    page = visit.open_demo()
    call(page, number)
    code = visit.answer()

    visit.type_code(wrong(code))
    expect(page.locator("#checks")).to_have_text("That is not the code. 4 attempts left.")
    expect(page.locator("#boxes input").first).to_be_focused()
    expect(page.locator("#boxes input").first).to_have_value("")
    visit.type_code(code)

    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()


def test_after_the_last_wrong_code_the_page_says_when_to_start_again(visit: Visit, number: str) -> None:
    page = visit.open_demo()
    call(page, number)
    code = visit.answer()

    for left in (4, 3, 2, 1):
        visit.type_code(wrong(code))
        expect(page.locator("#checks")).to_contain_text(f"{left} attempt")
    visit.type_code(wrong(code))

    expect(page.get_by_role("heading", name="Too many wrong codes")).to_be_focused()
    expect(page.locator("#end-hint")).to_have_text(re.compile(r"anew (in 0:0[12]|now)\."))
    expect(page.locator("#restart")).to_have_text("Start over")  # when the cooldown is over
    page.locator("#restart").click()
    call(page, number)
    expect(page.locator("#checks")).to_have_text("5 attempts left")
    visit.type_code(visit.answer())
    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()


def test_a_resend_keeps_the_code_of_the_first_call_valid(visit: Visit, number: str) -> None:
    page = visit.open_demo()
    call(page, number)
    first = visit.answer()

    expect(page.locator("#again")).to_have_text("Call again")
    page.locator("#again").click()
    expect(page.locator("#phone")).to_have_attribute("data-state", "ringing")
    assert visit.answer() != first
    visit.type_code(first)

    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()
    expect(page.locator("#renewed")).to_be_hidden()
    (check,) = visit.sent("POST", "/verify/check")
    assert named(visit) == [None, check["verification_id"]]


def named(visit: Visit) -> list[str | None]:
    """Return the verification_id of each start of the page; a start with one is a resend."""
    return [body.get("verification_id") for body in visit.sent("POST", "/verify/start")]


def test_a_resend_of_a_finished_verification_starts_a_new_one_and_says_so(visit: Visit, number: str) -> None:
    visit.expected_statuses = {404}
    page = visit.open_demo()

    def cancel_first(route: Route) -> None:
        if verification_id := json.loads(route.request.post_data or "{}").get("verification_id"):
            httpx.post(f"{visit.base_url}/verify/{verification_id}/cancel")
        route.continue_()

    page.route("**/verify/start", cancel_first)
    call(page, number)
    first = visit.answer()
    page.get_by_role("button", name="Call again", exact=True).click()

    expect(page.locator("#renewed")).to_contain_text("The earlier codes no longer work")
    second = visit.answer()
    visit.type_code(first)
    expect(page.locator("#checks")).to_contain_text("4 attempts left")
    visit.type_code(second)
    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()
    (old, *_), new = (visit.sent("POST", "/verify/check"), named(visit)[1])
    assert named(visit) == [None, new, None]
    assert old["verification_id"] != new


def test_a_start_after_changing_the_number_is_new_and_shows_the_cooldown(visit: Visit, number: str) -> None:
    visit.expected_statuses = {429}
    page = visit.open_demo()
    call(page, number)
    page.get_by_role("button", name="Another number").click()

    page.locator("#call").click()
    expect(page.get_by_role("alert")).to_contain_text(re.compile("This number was called a moment ago.*Try again in"))
    expect(page.get_by_role("alert")).to_contain_text("You can try again now.")
    call(page, number)

    expect(page.locator("#checks")).to_have_text("5 attempts left")
    visit.type_code(visit.answer())
    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()
    assert named(visit) == [None] * 3


def test_a_failed_call_is_shown_on_the_form_and_on_the_virtual_phone(visiting: Visiting) -> None:
    endings = [
        ("1", "busy", "The line was busy"),
        ("2", "no_answer", "Nobody answered"),
        ("8", "failed", "did not get through"),
    ]
    pages = [visiting().open_demo() for _ in endings]
    for (ending, _, _), page in zip(
        endings, pages, strict=True
    ):  # concurrently, because each call takes several seconds
        choose(page, ending)
        page.locator("#call").click()

    for (_, state, words), page in zip(endings, pages, strict=True):
        expect(page.locator("#phone")).to_have_attribute("data-state", state)
        expect(page.locator("#progress")).to_contain_text(words)
        expect(page.locator("#again")).to_have_attribute("aria-disabled", "false")


def test_refusals_are_explained_and_the_number_can_be_changed(visit: Visit, number: str) -> None:
    refusals = {
        "+7 900 000-00-03": "The call was refused",
        "8 495 123-45-67": "That is not a mobile number",
        "8 701 123-45-67": "That number is of another country",
        "12": "There is no such number",
    }
    visit.expected_statuses = {422, 502}
    page = visit.open_demo()

    for typed, words in refusals.items():
        page.locator("#number").fill(typed)
        page.locator("#call").click()
        expect(page.get_by_role("alert")).to_contain_text(words)
    call(page, number)

    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_reloaded_page_continues_with_the_placed_call(visit: Visit, number: str) -> None:
    visit.expected_statuses = {429}
    page = visit.open_demo()
    call(page, number)

    visit.open_demo()
    call(page, number)

    expect(page.get_by_role("heading", name="Enter the code you hear")).to_be_visible()
    expect(page.locator("#entries")).to_contain_text("429")
    expect(page.get_by_role("alert")).to_be_hidden()
    visit.type_code(visit.answer())
    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()
    (check,) = visit.sent("POST", "/verify/check")
    assert named(visit) == [None, check["verification_id"]]


def test_the_page_shows_the_expiry_of_a_code_by_itself(visit: Visit, number: str) -> None:
    visit.page.clock.install()
    page = visit.open_demo()
    call(page, number)
    page.get_by_role("button", name="Decline").click()
    # Until the call is over, each event of it says anew how long the code lives: by the server's clock, which stands.
    expect(page.locator("#progress")).to_have_text("The call was made")

    page.clock.fast_forward("05:01")

    expect(page.get_by_role("heading", name="The code has expired")).to_be_focused()
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#number")).to_be_focused()


def test_a_code_can_be_pasted_and_corrected(visit: Visit, number: str) -> None:
    page = visit.open_demo()
    call(page, number)
    boxes = page.locator("#boxes input")
    assert boxes.first.get_attribute("autocomplete") == "one-time-code"
    assert boxes.first.get_attribute("inputmode") == "numeric"

    boxes.first.focus()
    page.keyboard.type("1a2-3")
    page.keyboard.press("Backspace")
    assert boxes.evaluate_all("boxes => boxes.map(box => box.value).join('')") == "12"
    code = visit.answer()
    boxes.nth(1).evaluate(
        """(box, text) => {
            const clipboardData = new DataTransfer();
            clipboardData.setData("text", text);
            box.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true}));
        }""",
        # The second half in Persian digits.
        f" {code[:3]}-\u200b{code[3:].translate({48 + digit: 0x06F0 + digit for digit in range(10)})} ",
    )

    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()


def tab_to(page: Page, selector: str, *, back: bool = False) -> None:
    for _ in range(40):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError(f"the keyboard does not reach {selector}")


def test_everything_can_be_done_with_the_keyboard_alone(visit: Visit, number: str) -> None:
    page = visit.open_demo()

    tab_to(page, "#number")
    page.keyboard.press("Control+A")
    page.keyboard.type(number)
    page.keyboard.press("Enter")
    page.locator("#phone[data-state=ringing]").wait_for()
    tab_to(page, "#answer")
    outline = page.locator("#answer").evaluate("button => getComputedStyle(button).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    code = visit.read()
    tab_to(page, "#boxes input:first-child", back=True)
    page.keyboard.type(code)
    expect(page.locator("#end-title")).to_be_focused()
    tab_to(page, "#restart")
    page.keyboard.press("Enter")

    expect(page.locator("#number")).to_be_focused()


def test_language_theme_and_mute_are_remembered(visit: Visit) -> None:
    page = visit.open_demo()

    page.get_by_role("button", name="Русский").click()
    expect(page.locator("#call")).to_have_text("Позвоните мне")
    page.locator("#theme").click()
    page.locator("#mute").click()
    visit.open_demo()

    expect(page.locator("#call")).to_have_text("Позвоните мне")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page.locator("#mute")).to_have_attribute("aria-pressed", "true")


def test_a_request_copied_as_curl_works_in_a_shell(visit: Visit, number: str) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visit.open_demo()
    call(page, number)
    page.get_by_role("button", name="Another number").click()
    line = page.locator("#entries li").filter(has_text="/cancel")
    line.get_by_role("button", name="Copy as curl").click()

    expect(line.get_by_role("button", name="Copied")).to_be_visible()
    pasted = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(["sh", "-c", pasted], capture_output=True, text=True, timeout=20, check=True)
    assert json.loads(done.stdout)["status"] == "canceled"


# A stub of speech synthesis: a machine without sound has no voices.
VOICES = """
    window.said = [];
    window.SpeechSynthesisUtterance = class extends EventTarget {
      constructor(text) { super(); this.text = text; }
    };
    Object.defineProperty(window, "speechSynthesis", { value: {
      getVoices: () => [{ lang: "en-GB", localService: true }, { lang: "ru-RU", localService: true }],
      speak: (word) => { window.said.push([word.lang, word.text]); word.dispatchEvent(new Event("end")); },
      cancel: () => {},
    } });
"""


def test_the_code_is_spoken_twice_digit_by_digit_in_the_language_of_the_page(visiting: Visiting, number: str) -> None:
    visit = visiting(locale="ru-RU")
    visit.context.add_init_script(VOICES)
    page = visit.open_demo()
    call(page, number)

    code = visit.answer()

    expect(page.locator("#phone")).to_have_attribute("data-state", "completed")
    assert page.evaluate("said") == [["ru-RU", word] for word in ["Ваш код", *code] * 2]


def test_a_muted_phone_shows_the_code_without_speaking_it(visit: Visit, number: str) -> None:
    visit.context.add_init_script(VOICES)
    page = visit.open_demo()
    page.locator("#mute").click()
    call(page, number)

    assert len(visit.answer()) == 6

    expect(page.locator("#caption .lit")).to_have_count(1)
    assert page.evaluate("said") == []


@pytest.mark.parametrize("locale", ["en-US", "ru-RU"])
def test_on_the_narrowest_screen_nothing_overflows(visiting: Visiting, number: str, locale: str) -> None:
    visit = visiting(viewport=NARROW, locale=locale)
    page = visit.open_demo()

    def assert_fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
        right_ends = page.locator(".bar > *, #calls > li > *").evaluate_all(
            "nodes => nodes.map(node => node.getBoundingClientRect().right)"
        )
        assert max(right_ends) <= NARROW["width"]

    assert_fits()
    call(page, number)
    assert_fits()
    visit.type_code(visit.answer())
    page.locator("#token").wait_for()
    page.locator("#calls li").first.wait_for()
    assert_fits()


def test_on_a_phone_screen_a_request_can_be_copied_as_curl_without_opening_it(visiting: Visiting, number: str) -> None:
    visit = visiting(viewport=NARROW, has_touch=True)
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visit.open_demo()
    call(page, number)

    line = page.locator("#entries li").filter(has_text="/verify/start")
    line.get_by_role("button", name="Copy as curl").tap()

    expect(line.get_by_text("Copied")).to_be_in_viewport()
    assert page.evaluate("navigator.clipboard.readText()").startswith("curl -sS -X POST ")


def test_a_call_is_said_to_be_over_only_when_the_phone_on_the_page_has_stopped(visiting: Visiting, number: str) -> None:
    visit = visiting()
    page = visit.open_demo()
    call(page, number)
    page.locator("#calls li[data-status=completed]").filter(has_text=number).wait_for()  # for the network it is over

    expect(page.locator("#phone")).to_have_attribute("data-state", "ringing")
    expect(page.locator("#progress")).to_have_text("Your phone is ringing")
    page.get_by_role("button", name="Decline").click()

    expect(page.locator("#progress")).to_have_text("The call was made")


def test_the_inbox_shows_calls_that_other_code_started(visit: Visit, number: str) -> None:
    page = visit.open_demo()

    httpx.post(f"{visit.base_url}/verify/start", json={"phone": number})

    entry = page.locator("#calls li").filter(has_text=number)
    expect(entry.locator("code")).to_have_text(re.compile(r"\d{6}"))
    expect(entry).to_contain_text(re.compile("answered|ended"))
    assert not [
        url for _, url, _ in visit.requests if "/sandbox/calls" in url and url in page.locator("#entries").inner_text()
    ]


@pytest.mark.parametrize("problem", ["validation-failed", "something-new"])
def test_a_problem_is_explained_in_russian_on_the_russian_page(visiting: Visiting, number: str, problem: str) -> None:
    visit = visiting(locale="ru-RU")
    visit.expected_statuses = {422}
    page = visit.open_demo()
    body = {"type": f"/problems/{problem}", "title": "Bad input", "detail": "The field is too long.", "status": 422}
    page.route("**/verify/start", lambda route: route.fulfill(status=422, json=body))

    page.locator("#number").fill(number)
    page.locator("#call").click()

    expect(page.get_by_role("alert")).to_contain_text(re.compile("[\u0430-\u044f]"))
    expect(page.get_by_role("alert")).not_to_contain_text(re.compile("[A-Za-z]"))


def test_on_a_phone_screen_nothing_overflows_and_an_incoming_call_is_announced(visiting: Visiting, number: str) -> None:
    visit = visiting(viewport=PHONE, locale="ru-RU", has_touch=True)
    page = visit.open_demo()

    call(page, number)
    page.locator("#pill", has_text="Входящий звонок").click()

    expect(page.locator("#phone")).to_be_in_viewport()
    expect(page.locator("#pill")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_the_root_redirects_to_the_demo_page(visit: Visit) -> None:
    visit.page.goto("/")

    assert visit.page.url == f"{visit.base_url}/demo"


def test_both_languages_have_the_same_texts_with_the_same_placeholders(visit: Visit) -> None:
    page = visit.open_demo()

    texts = page.evaluate("""async () => Promise.all(
        ["en", "ru"].map(async (name) => (await import(`/demo/js/texts/${name}.js`)).default))""")

    english, russian = (dict(flat(found)) for found in texts)
    forms = {name: set(places) for name, places in english.items()}
    assert {name: set(places) for name, places in russian.items()} == forms
    named = set(page.locator("[data-text]").evaluate_all("nodes => nodes.map(node => node.dataset.text)"))
    assert named <= set(english)


def flat(texts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the texts by name, each with its placeholders; plural forms, which differ by language, count as one."""
    for name, text in texts.items():
        if isinstance(text, dict) and "other" in text:
            yield f"{prefix}{name}", re.findall(r"\{\w+\}", text["other"])
        elif isinstance(text, dict):
            yield from flat(text, f"{prefix}{name}.")
        elif isinstance(text, list):
            yield f"{prefix}{name}", []
        else:
            yield f"{prefix}{name}", re.findall(r"\{\w+\}", text)
