"""The console in a real browser: every section in every state, by keyboard and at each width, without a violation."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.conftest import DESKTOP, NARROW, PHONE, THIS, TIMEOUT_MS, Visit, Visiting
from tests.browser.test_demo_accessibility import assert_accessible
from tests.e2e.conftest import Demo, running

expect.set_options(timeout=TIMEOUT_MS)

KEY = "not-a-real-key"
BUSY, NO_ANSWER, REFUSED = "+79000000001", "+79000000002", "+79000000003"
VERIFIED, IMPATIENT, MISTYPED, IN_OUTAGE = "+79161234567", "+79261234567", "+79361234567", "+79061234567"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Run a sandbox where all that support is asked about has happened, and with a webhook."""
    rules = {"CALL_COOLDOWNS_SECONDS": "60", "PLUSOFON_CIRCUIT_FAILURES": "1", "PLUSOFON_CIRCUIT_SECONDS": "1"}
    with running(tmp_path_factory.mktemp("console"), **rules, **THIS) as demo:
        httpx.put(f"{demo.base_url}/sandbox/faults", json={"share": 1, "kinds": ["closed_before"]})
        for phone in ("+79061234500", IN_OUTAGE):
            demo.post("/verify/start", phone=phone)
        httpx.put(f"{demo.base_url}/sandbox/faults", json={"share": 0})
        time.sleep(1)  # until the circuit lets a call through
        for phone in (BUSY, NO_ANSWER, REFUSED, IMPATIENT, IMPATIENT):
            demo.post("/verify/start", phone=phone)
        mistyped = demo.post("/verify/start", phone=MISTYPED).json()["verification_id"]
        code = demo.hear(MISTYPED)
        for _ in range(5):
            demo.post("/verify/check", verification_id=mistyped, code=f"{(int(code) + 1) % 10**6:06}")
        consent = {"version": "calls-2026-01", "at": "2026-01-31T08:59:30Z"}
        order = {"phone": VERIFIED, "reference": "order-1024", "consent": consent}
        started = httpx.post(f"{demo.base_url}/verify/start", json=order).json()
        demo.post("/verify/check", verification_id=started["verification_id"], code=demo.hear(VERIFIED))
        yield demo


def open_console(visit: Visit) -> Page:
    visit.page.goto("/console")
    visit.page.wait_for_selector("html[data-ready]")
    expect(visit.page.locator("#attempts .row").first).to_be_visible()
    return visit.page


def search(page: Page, wanted: str) -> None:
    page.get_by_label("Phone number or verification id").fill(wanted)
    page.get_by_role("button", name="Find").click()


def answer_with(page: Page, path: str, status: int, **problem: str) -> None:
    """Let the service answer the requests for a path with a problem from now on."""

    def fulfill(route: Route) -> None:
        route.fulfill(status=status, json=problem, content_type="application/problem+json")

    page.route(re.compile(re.escape(path)), fulfill)


def test_today_shows_calls_money_and_whether_calls_can_be_placed(visit: Visit) -> None:
    page = open_console(visit)

    expect(page.locator("#today [data-name=verified]")).to_have_text("1")
    expect(page.locator("#today [data-name=spend]")).to_contain_text(re.compile("[1-9]"))
    expect(page.locator("#health [data-name=redis]")).to_have_text("works")
    expect(page.locator("#health [data-name=plusofon]")).to_have_text("works")
    expect(page.locator("#health [data-name=balance]")).to_contain_text(re.compile("[1-9]"))
    expect(page.get_by_role("img", name=re.compile("calls today, 1 of them verified; .*: 1 of"))).to_be_visible()
    expect(page.locator("#today .bars li").first).to_contain_text("Voice")


@pytest.mark.parametrize(
    ("phone", "what", "to_do"),
    [
        (BUSY, "busy", "ask for another call"),
        (NO_ANSWER, "no answer", "Nobody picked up"),
        (MISTYPED, "locked", "Too many wrong codes"),
        (REFUSED, "refused by the provider", "Look at the account"),
        (VERIFIED, "verified", "The right code was given"),
    ],
)
def test_a_search_by_phone_finds_why_a_call_failed_and_what_to_do(
    visit: Visit, phone: str, what: str, to_do: str
) -> None:
    page = open_console(visit)
    search(page, phone)
    expect(page.locator("#attempts .row", has_not_text=f"•••-{phone[-4:-2]}-{phone[-2:]}")).to_have_count(0)
    expect(page.locator("#attempts .tag").first).to_have_text(what)
    page.locator("#attempts .row").first.click()

    expect(page.get_by_role("dialog", name="Verification")).to_be_visible()
    expect(page.locator("#attempt .advice").first).to_contain_text(to_do)
    expect(page.locator("#attempt .line li").first).to_contain_text("asked")
    assert phone[1:] not in str([url for _, url, _ in visit.requests])
    page.keyboard.press("Escape")
    expect(page.locator("#attempts .row").first).to_be_focused()
    page.get_by_role("button", name="All calls").click()
    expect(page.locator("#attempts .row").nth(2)).to_be_visible()


def test_a_search_shows_the_starts_that_were_refused_before_a_provider_was_asked(visit: Visit) -> None:
    page = open_console(visit)
    search(page, IN_OUTAGE)

    expect(page.locator("#attempts .row")).to_have_count(1)
    expect(page.locator("#attempts .row")).to_contain_text("No provider could be reached")
    search(page, IMPATIENT)
    expect(page.locator("#attempts .row")).to_have_count(2)
    expect(page.locator("#attempts .row").last).to_contain_text("1 start refused")
    expect(page.locator("#attempts .row").last).to_contain_text("wait for a minute or two")


def test_a_search_by_id_opens_the_verification_or_says_that_there_is_none(visit: Visit, service: Demo) -> None:
    visit.expected_statuses = {404}
    found = httpx.post(f"{service.base_url}/admin/attempts/find", json={"phone": VERIFIED}).json()["attempts"]
    page = open_console(visit)
    search(page, found[0]["verification_id"])
    expect(page.locator("#attempt .facts").first).to_contain_text(found[0]["verification_id"])
    page.get_by_role("button", name="Close").click()
    search(page, "vrf_0a11b22c33d44e55f667788")

    expect(page.locator("#verification")).to_have_text("The journal has no such verification.")


def test_what_is_no_phone_is_refused_in_the_language_of_the_page(visiting: Visiting) -> None:
    for locale, sentence in (("en-US", "phone"), ("ru-RU", "нужен российский мобильный")):
        visit = visiting(locale=locale)
        visit.expected_statuses = {422}
        page = open_console(visit)
        page.locator("#wanted").fill("112")
        page.locator("#search button[type=submit]").click()
        expect(page.locator("#attempts .state")).to_contain_text(sentence)


def test_a_filter_shows_the_fitting_calls_or_that_there_are_none(visit: Visit) -> None:
    page = open_console(visit)
    page.get_by_label("Outcome").select_option("verified")
    expect(page.locator("#attempts .row")).to_have_count(1)
    page.get_by_label("Outcome").select_option("canceled")

    expect(page.locator("#attempts")).to_have_text("There are no such calls.")


def test_a_call_is_found_by_the_reference_of_its_client(visit: Visit) -> None:
    page = open_console(visit)
    page.get_by_label("Reference").fill("order-1024")
    page.get_by_label("Reference").press("Enter")
    expect(page.locator("#attempts .row")).to_have_count(1)
    page.locator("#attempts .row").click()

    for fact in ("order-1024", "Jan 31, 2026, calls-2026-01"):
        expect(page.locator("#attempt .facts").first).to_contain_text(fact)


def test_a_new_call_appears_by_itself_but_not_while_the_page_is_hidden(visit: Visit, service: Demo) -> None:
    page = visit.page
    page.clock.install()
    open_console(visit)
    rows = page.locator("#attempts .row")
    before = rows.count()

    hide(page, hidden=True)
    call(service, "+79031234567")
    asked = len(visit.requests)
    page.clock.run_for(60_000)
    assert visit.requests[asked:] == []

    hide(page, hidden=False)
    expect(rows).to_have_count(before + 1)
    call(service, "+79041234567")
    page.clock.run_for(5000)
    expect(rows).to_have_count(before + 2)


def hide(page: Page, *, hidden: bool) -> None:
    page.evaluate(
        """hidden => {
          Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def call(service: Demo, phone: str) -> None:
    """Call a phone, and wait until the statistics, which are written behind, have the call."""

    def placed() -> int:
        return int(httpx.get(f"{service.base_url}/admin/stats").json()["total"]["placed"])

    before = placed()
    service.post("/verify/start", phone=phone)
    deadline = time.monotonic() + 20
    while placed() == before:
        assert time.monotonic() < deadline


def test_earlier_calls_are_added_below(visit: Visit) -> None:
    page = visit.page
    page.route(
        re.compile(r"/admin/attempts\?"),
        lambda route: route.continue_(url=route.request.url.replace("limit=50", "limit=1")),
    )
    open_console(visit)
    first = page.locator("#attempts .row").first.text_content()
    page.get_by_role("button", name="Earlier calls").click()

    expect(page.locator("#attempts .row")).to_have_count(2)
    expect(page.locator("#attempts .row").first).to_have_text(first or "")
    expect(page.locator("#live")).to_be_empty()


def test_each_panel_loads_by_itself_and_says_what_went_wrong(visit: Visit) -> None:
    visit.expected_statuses = {503, 502}
    page = visit.page
    page.clock.install()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(re.compile("/admin/stats"), hold)
    answer_with(page, "/admin/guard", 503, type="/problems/store-unavailable", detail="Redis does not answer.")
    answer_with(page, "/provider/account", 502, type="/problems/provider-rejected")
    page.route(re.compile("/admin/webhooks/failed"), lambda route: route.abort())
    visit.page.goto("/console")

    expect(page.locator("#today")).to_have_text("Loading…")
    expect(page.locator("#guard")).to_have_text("Redis does not answer.")
    expect(page.locator("#failed")).to_have_text("The service does not answer. The page keeps trying.")
    expect(page.locator("#health [data-name=balance]")).to_have_text("unknown")
    expect(page.locator("#attempts .row").first).to_be_visible()
    assert_accessible(page, "loading and errors")
    page.clock.run_for(60_000)
    assert len(held) == 1  # no further request overtakes one that takes long
    held[0].continue_()
    expect(page.locator("#today .figures")).to_be_visible()
    visit.wrong = [wrong for wrong in visit.wrong if "net::ERR_FAILED" not in wrong]


def test_a_block_of_the_fraud_guard_is_lifted_and_a_failed_webhook_sent_again(visit: Visit) -> None:
    page = visit.page
    block = {"range": "+79005550", "since": "2026-01-31T09:00:00Z", "until": "2026-01-31T10:00:00Z"}
    event = {"id": "msg_0a11b22c33d44e55f667788-3", "type": "verification.verified", "client": "shop", "attempts": 7}
    state = {
        "/admin/guard": {"blocks": [block | {"level": 1, "calls": 24, "successes": 1}], "suspects": []},
        "/admin/webhooks/failed": {"events": [event | {"error": "status 500", "given_up_at": block["since"]}]},
    }
    changes: list[tuple[str, str]] = []

    def act(route: Route) -> None:
        path = route.request.url.removeprefix(visit.base_url)
        if route.request.method == "GET":
            return route.fulfill(json=state[path])
        changes.append((route.request.method, path))
        state[path.partition("/%2B")[0].partition("/msg_")[0]] = {"blocks": [], "suspects": [], "events": []}
        return route.fulfill(status=204)

    page.route(re.compile("/admin/(guard|webhooks)"), act)
    open_console(visit)
    expect(page.locator("#guard .row")).to_contain_text("1 of 24 verified")
    expect(page.locator("#failed .row")).to_contain_text("7 attempts: status 500")
    assert_accessible(page, "a block and a failed webhook")

    page.get_by_role("button", name="Lift").click()
    expect(page.locator("#guard")).to_have_text("Nothing is blocked.")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator("#failed")).to_have_text("No webhook was given up.")
    assert changes == [
        ("DELETE", "/admin/guard/%2B79005550"),
        ("POST", "/admin/webhooks/failed/msg_0a11b22c33d44e55f667788-3/resend"),
    ]


def test_a_repair_that_fails_says_so_beside_its_button(visit: Visit) -> None:
    visit.expected_statuses = {404}
    page = visit.page
    block = {"range": "+79005550", "until": "2026-01-31T10:00:00Z", "level": 1, "calls": 24, "successes": 1}
    page.route(
        re.compile("/admin/guard$"), lambda route: route.fulfill(json={"blocks": [block], "suspects": []})
    )  # which the service does not know
    open_console(visit)
    page.get_by_role("button", name="Lift").click()

    expect(page.locator("#guard").get_by_role("alert")).to_have_text("This range is not blocked.")
    expect(page.get_by_role("button", name="Lift")).to_be_enabled()


def test_a_phone_is_erased_once_its_number_was_typed_again(visit: Visit, service: Demo) -> None:
    phone = "+79051234567"
    service.post("/verify/start", phone=phone)
    page = open_console(visit)
    page.get_by_label("Phone number", exact=True).fill(phone)
    page.get_by_role("button", name="Erase…").click()
    question = page.get_by_role("dialog", name="Erase +7 905 123-45-67?")
    assert_accessible(page, "asks before it erases")
    question.get_by_label("Type the number again").fill("+79051234568")
    question.get_by_role("button", name="Erase").click()
    expect(question.get_by_role("alert")).to_have_text("This is another number.")
    assert visit.sent("POST", "/admin/phones/erase") == []

    question.get_by_label("Type the number again").fill("8 905 123 45 67")
    question.get_by_role("button", name="Erase").click()
    expect(page.locator("#erased")).to_contain_text("Verifications: 1, calls: 1, attempts in the journal: 1")
    assert visit.sent("POST", "/admin/phones/erase") == [{"phone": phone}]
    search(page, phone)
    expect(page.locator("#attempts")).to_have_text("There are no such calls.")


def test_the_sandbox_shows_the_webhooks_of_the_day(visit: Visit) -> None:
    page = open_console(visit)

    expect(page.locator("#sent .row").first).to_contain_text("sandbox")
    expect(page.locator("#sent")).to_contain_text("verification.verified")


def test_all_of_it_works_by_keyboard(visit: Visit) -> None:
    page = open_console(visit)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.locator("#attempts .row").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#attempt-title")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#attempt")).to_be_hidden()
    expect(page.locator("#attempts .row").first).to_be_focused()


@pytest.mark.parametrize("locale", ["en-US", "ru-RU"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE, NARROW], ids=["1280", "390", "320"])
def test_the_console_fits_each_width_and_has_no_violation(
    visiting: Visiting, size: dict[str, int], locale: str
) -> None:
    page = open_console(visiting(viewport=size, locale=locale))
    expect(page.locator("#today .figures")).to_be_visible()
    expect(page.locator("#sent .row").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    assert_accessible(page, "all sections")

    page.locator("#attempts .row").first.click()
    expect(page.locator("#attempt .advice").first).to_be_visible()
    assert page.evaluate("document.querySelector('#attempt').scrollWidth") <= size["width"]
    assert_accessible(page, "a verification is open")


@pytest.fixture
def keyed(browser: Browser, tmp_path: Path) -> Iterator[Visit]:
    keys = f"ops:{hashlib.sha256(KEY.encode()).hexdigest()}"
    with running(tmp_path, ADMIN_KEYS=keys, **THIS) as demo:
        visit = Visit(browser, demo.base_url)
        visit.expected_statuses = {401}
        visit.page.goto("/console")
        yield visit
        visit.context.close()
        assert visit.wrong == []


def test_with_keys_the_console_opens_with_an_admin_key_alone(keyed: Visit) -> None:
    page = keyed.page
    key, submit = page.get_by_label("Admin key"), page.get_by_role("button", name="Open")
    expect(key).to_be_visible()
    expect(page.locator("#console")).to_be_hidden()
    assert_accessible(page, "asks for a key")
    key.fill("wrong")
    submit.click()
    expect(page.get_by_role("alert")).to_have_text("The service does not know this admin key.")

    key.fill(KEY)
    submit.click()
    expect(page.locator("#failed")).to_have_text("No webhook was given up.")
    kept: Callable[[str], str] = lambda storage: str(page.evaluate(f"JSON.stringify({storage})"))  # noqa: E731
    assert KEY in kept("sessionStorage")
    assert KEY not in kept("localStorage")
    page.reload()
    expect(page.locator("#failed")).to_have_text("No webhook was given up.")
    page.get_by_role("button", name="Sign out").click()
    expect(key).to_be_visible()
    assert KEY not in kept("sessionStorage")
