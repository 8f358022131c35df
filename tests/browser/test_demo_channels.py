"""The page's part in the channels without a spoken code, and in the stream of events, against answers made up here."""

import json
import re
from typing import Any

from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import PATIENCE_MS, Visit

expect.set_options(timeout=PATIENCE_MS)

ID = "vrf_0a11b22c33d44e55f667788"
CALLER = "+74951234821"
DIAL = "+78005553535"
PENDING: dict[str, Any] = {
    "verification_id": ID,
    "status": "pending",
    "purpose": "phone_verification",
    "channel": "flash_call",
    "phone": "+7900•••4567",
    "code_length": 4,
    "calls_placed": 1,
    "calls_left": 2,
    "checks_left": 3,
    "call": {"status": "initiated"},
    "created_at": "2026-01-31T09:00:00Z",
    "expires_at": "2026-01-31T09:05:00Z",
    "expires_in": 300,
    "resend_in": 60,
}
CALL = {
    "call_id": "one",
    "status": "ringing",
    "heard": None,
    "lang": "en",
    "repeat": 1,
    "placed_at": "2026-01-31T09:00:00Z",
}
VERIFIED = {"verified": True, "status": "verified", "verification_id": ID, "phone": "+79001234567", "token": "a.b.c"}


def serve(page: Page, path: str, *answers: object, status: int = 200) -> list[Any]:
    """Answer requests for a path, the last answer again and again; what was sent is in the list."""
    sent: list[Any] = []

    def answer(route: Route) -> None:
        body = route.request.post_data
        sent.append(json.loads(body) if body else None)
        route.fulfill(status=status, json=answers[min(len(sent), len(answers)) - 1])

    page.route(path, answer)
    return sent


def offer(page: Page, *channels: str, events: bool = False) -> None:
    serve(page, "**/demo/config.json", {"channels": channels, "events": events})


def test_the_code_of_a_flash_call_is_in_the_number_that_calls(visit: Visit) -> None:
    page = visit.page
    offer(page, "voice", "flash_call")
    started = serve(page, "**/verify/start", PENDING, status=201)
    checked = serve(page, "**/verify/check", VERIFIED)
    serve(page, f"**/verify/{ID}", PENDING)
    flash = {**CALL, "channel": "flash_call", "caller": CALLER}
    serve(page, "**/sandbox/phones/*/calls", {"calls": []}, {"calls": [flash]})
    visit.open_demo()

    page.get_by_label(re.compile("^Caller.s number")).check()
    page.locator("#call").click()

    expect(page.locator("#boxes input")).to_have_count(4)
    expect(page.locator("#phone")).to_have_attribute("data-state", "flash")
    expect(page.locator("#phone-who")).to_have_text("+7 495 123-48-21")
    expect(page.locator("#answer")).to_be_hidden()
    visit.type_code(visit.read())
    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()
    assert started[0]["channel"] == "flash_call"
    assert checked == [{"verification_id": ID, "code": "4821"}]


def test_a_reverse_call_is_dialed_and_the_page_asks_until_it_was_recognised(visit: Visit) -> None:
    page = visit.page
    offer(page, "voice", "reverse_call")
    told = {**PENDING, "channel": "reverse_call", "code_length": None, "call": None}
    serve(page, "**/verify/start", {**told, "dial": DIAL}, status=201)
    serve(page, f"**/verify/{ID}", told)
    checked = serve(page, "**/verify/check", {**VERIFIED, "verified": False, "status": "pending"}, VERIFIED)
    waiting = {**CALL, "channel": "reverse_call", "status": "queued", "dial": DIAL, "lang": None, "repeat": None}
    serve(page, "**/sandbox/phones/*/calls", {"calls": []}, {"calls": [waiting]})
    dialed = serve(page, "**/sandbox/phones/*/dial", {}, status=202)
    visit.open_demo()

    page.get_by_label("You call", exact=True).check()
    page.get_by_role("button", name="Get the number").click()
    expect(page.locator("#dial")).to_have_text("+7 800 555-35-35")
    expect(page.locator("#code-form")).to_be_hidden()
    expect(page.locator("#phone")).to_have_attribute("data-state", "dial")
    page.get_by_role("button", name="Dial").click()

    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()
    expect(page.locator("#phone")).to_have_attribute("data-state", "dialed")
    assert dialed == [{"number": DIAL}]
    assert checked == [{"verification_id": ID}] * 2


def test_the_stream_of_events_moves_the_page_and_nothing_is_polled(visit: Visit) -> None:
    page = visit.page
    offer(page, "voice", events=True)
    voice = {**PENDING, "channel": "voice", "code_length": 6}
    serve(page, "**/verify/start", voice, status=201)
    serve(page, "**/sandbox/phones/*/calls", {"calls": []})
    polled = serve(page, f"**/verify/{ID}", voice)
    ringing = {**voice, "call": {"status": "ringing"}}
    stream = f"retry: 1000000\n\nid: 2\nevent: verification\ndata: {json.dumps(ringing)}\n\n"
    page.route(f"**/verify/{ID}/events", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
    visit.open_demo()

    page.locator("#call").click()

    expect(page.locator("#progress")).to_have_text("Your phone is ringing")
    expect(page.locator("#entries")).to_contain_text("/events")
    assert polled == []


def test_a_stream_that_says_expired_ends_the_page(visit: Visit) -> None:
    page = visit.page
    offer(page, "voice", events=True)
    serve(page, "**/verify/start", {**PENDING, "channel": "voice", "code_length": 6}, status=201)
    serve(page, "**/sandbox/phones/*/calls", {"calls": []})
    stream = "event: expired\ndata: {}\n\n"
    page.route(f"**/verify/{ID}/events", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
    visit.open_demo()

    page.locator("#call").click()

    expect(page.get_by_role("heading", name="The code has expired")).to_be_visible()


def test_where_the_stream_is_refused_the_page_asks_each_second(visit: Visit, number: str) -> None:
    visit.expected_statuses = {503}
    page = visit.page
    offer(page, "voice", events=True)
    page.route("**/verify/*/events", lambda route: route.fulfill(status=503))
    visit.open_demo()

    page.locator("#number").fill(number)
    page.locator("#call").click()

    expect(page.locator("#progress")).to_have_text("The call was made")
