"""Takes ``docs/screenshots`` with a running sandbox: ``python -m tests.browser.take_screenshots``."""

import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from app.sandbox.numbers import MagicNumber
from tests.browser.conftest import DESKTOP, PHONE, THIS, Visit, launch
from tests.browser.test_console_page import open_console
from tests.e2e.conftest import running

FOLDER = Path(__file__).parents[2] / "docs" / "screenshots"
SCREEN = {"width": 1200, "height": 840}


def save(visit: Visit, name: str) -> None:
    visit.page.wait_for_timeout(500)  # until the animations have ended
    visit.page.screenshot(path=FOLDER / f"{name}.png")
    visit.context.close()


def begin(visit: Visit, number: str) -> None:
    page = visit.open_demo()
    page.locator("#number").fill(number)
    page.locator("#call").click()
    page.locator("#phone[data-state=ringing]").wait_for()


def take(browser: Browser, base_url: str) -> None:
    speaking = Visit(browser, base_url, viewport=SCREEN)
    begin(speaking, "+7 900 123-45-67")
    speaking.answer()
    save(speaking, "demo-light-en")

    small = Visit(browser, base_url, viewport=PHONE, color_scheme="dark", locale="ru-RU")
    begin(small, "+7 900 765-43-21")
    save(small, "demo-phone-dark-ru")

    dialing = Visit(browser, base_url, viewport=SCREEN, color_scheme="dark", locale="ru-RU")
    dialing.open_demo().locator("[name=channel][value=reverse_call]").check()
    dialing.page.locator("#number").fill("+7 900 234-56-78")
    dialing.page.locator("#call").click()
    dialing.page.locator("#phone[data-state=dial]").wait_for()
    save(dialing, "demo-reverse-dark-ru")

    verified = Visit(browser, base_url, viewport=SCREEN)
    begin(verified, "+7 900 345-67-89")
    verified.type_code(verified.answer())
    verified.page.locator("#end-title").wait_for()
    save(verified, "demo-verified")

    console = Visit(browser, base_url, viewport=DESKTOP)
    open_console(console)
    save(console, "console-light-en")

    one = Visit(browser, base_url, viewport=PHONE, color_scheme="dark", locale="ru-RU")
    open_console(one).locator("#attempts .row").last.click()
    one.page.locator("#attempt .advice").first.wait_for()
    save(one, "console-phone-dark-ru")

    docs = Visit(browser, base_url, viewport=SCREEN)
    docs.page.goto("/docs")
    docs.page.locator(".opblock").first.wait_for()
    save(docs, "docs")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), **THIS) as demo,
        sync_playwright() as playwright,
        launch(playwright) as browser,
    ):
        for phone in (MagicNumber.BUSY, MagicNumber.NO_ANSWER, MagicNumber.REFUSED):
            demo.post("/verify/start", phone=phone)
        take(browser, demo.base_url)


if __name__ == "__main__":
    main()
