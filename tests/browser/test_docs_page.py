"""The docs page in a real browser: every example works unchanged, and a key can be entered."""

import hashlib
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import THIS, TIMEOUT_MS, Visit, Visiting
from tests.e2e.conftest import Demo, running

expect.set_options(timeout=TIMEOUT_MS)

KEY = "not-a-real-key"

with_keys_by_one_worker = pytest.mark.xdist_group("keys")  # so that one service is enough


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    keys = f"shop:{hashlib.sha256(KEY.encode()).hexdigest()}"
    with running(tmp_path_factory.mktemp("keys"), API_KEYS=keys, ADMIN_KEYS=keys, **THIS) as demo:
        yield demo


@pytest.fixture
def visit_with_keys(browser: Browser, with_keys: Demo) -> Iterator[Visit]:
    visit = Visit(browser, with_keys.base_url)
    visit.expected_statuses = {401}
    yield visit
    visit.context.close()
    assert visit.wrong == []


def operation(page: Page, method: str, path: str) -> Locator:
    block = page.locator(".opblock").filter(has=page.locator(f'[data-path="{path}"]')).filter(has_text=method).first
    block.locator(".opblock-summary-control").click()
    return block


def execute(block: Locator) -> str:
    block.get_by_role("button", name="Execute").click()
    answer = block.locator(".live-responses-table .response")
    answer.wait_for()
    return answer.locator(".response-col_status").inner_text().split()[0]


def test_start_check_read_and_cancel_work_with_their_examples(visit: Visit) -> None:
    page = visit.page
    page.goto("/docs")

    start = operation(page, "POST", "/verify/start")
    assert execute(start) == "201"
    response = start.locator(".live-responses-table").inner_text()
    verification_id = re.search(r"vrf_[0-9a-f]+", response)
    assert verification_id
    check = operation(page, "POST", "/verify/check")
    assert execute(check) == "200"
    assert '"verified": false' in check.locator(".live-responses-table").inner_text()
    read = operation(page, "GET", "/verify/{verification_id}")
    assert execute(read) == "200"
    assert verification_id[0] in read.locator(".request-url").inner_text()
    assert execute(operation(page, "POST", "/verify/{verification_id}/cancel")) == "200"


def test_the_header_links_to_the_overview_and_to_the_demo(visit: Visit) -> None:
    page = visit.page
    for section in ("Keys", "Errors", "Idempotency"):
        page.goto("/docs")
        page.get_by_role("navigation").get_by_role("link", name=section).click()
        expect(page.locator(f"#{section.lower()}")).to_be_in_viewport()

    page.get_by_role("link", name="Demo").click()
    page.wait_for_selector("html[data-ready]")


def test_a_link_to_a_section_from_elsewhere_scrolls_to_it(visit: Visit) -> None:
    visit.page.goto("/docs#idempotency")

    expect(visit.page.locator("#idempotency")).to_be_in_viewport()


# True once the background of the page and its title have the brightness, 0 to 765, of the colour scheme.
PAINTED = """dark => {
    const brightness = (name, style) => getComputedStyle(document.querySelector(name))[style]
        .match(/[\\d.]+/g).slice(0, 3).reduce((sum, channel) => sum + Number(channel), 0);
    const [background, title] = [brightness("body", "backgroundColor"), brightness(".title", "color")];
    return dark ? background < 150 && title > 500 : background > 600 && title < 300;
}"""


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_page_is_dark_where_the_system_is_and_fits_each_width(visiting: Visiting, width: int) -> None:
    page = visiting(viewport={"width": width, "height": 800}, color_scheme="dark").page
    page.goto("/docs")
    page.locator(".opblock").first.wait_for()

    page.wait_for_function(PAINTED, arg=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.emulate_media(color_scheme="light")
    page.wait_for_function(PAINTED, arg=False)


def test_the_tags_are_in_the_order_of_use(visit: Visit) -> None:
    visit.page.goto("/docs")
    tags = visit.page.locator(".opblock-tag")
    tags.first.wait_for()

    names = [tag.get_attribute("data-tag") for tag in tags.all()]

    assert names[:5] == ["verify", "tokens", "provider", "operations", "admin"]
    assert names[-1] == "sandbox"


@with_keys_by_one_worker
def test_the_key_entered_in_authorize_is_sent(visit_with_keys: Visit) -> None:
    page = visit_with_keys.page
    page.goto("/docs")
    assert execute(operation(page, "GET", "/provider/account")) == "401"

    page.get_by_role("button", name="Authorize", exact=True).click()
    dialog = page.locator(".modal-ux")
    dialog.get_by_role("textbox").last.fill(KEY)  # the admin key, for the account
    dialog.get_by_role("button", name=re.compile("^(Apply|Authorize)")).last.click()
    dialog.get_by_role("button", name=re.compile("^Close")).last.click()
    block = page.locator(".opblock.is-open")
    block.get_by_role("button", name="Execute").click()

    expect(block.locator(".live-responses-table .response .response-col_status")).to_contain_text("200")


@with_keys_by_one_worker
def test_a_sandbox_with_keys_asks_for_one_on_the_demo_page(visit_with_keys: Visit, number: str) -> None:
    page = visit_with_keys.open_demo()
    page.locator("#number").fill(number)
    page.locator("#call").click()
    expect(page.get_by_role("alert")).to_contain_text("This sandbox wants an API key")

    page.get_by_label("API key of this sandbox").fill(KEY)
    page.locator("#call").click()
    visit_with_keys.type_code(visit_with_keys.answer())

    expect(page.get_by_role("heading", name="Number confirmed")).to_be_visible()
