"""The files of the console and of the demo page: served, complete, with a strict content security policy."""

import importlib
import re
import zipfile
from enum import StrEnum
from pathlib import Path

import httpx
import pytest

from app.main import create_api, create_app
from app.verification.attempts import Ending, Outcome, Result
from app.verification.channels import Channel
from app.verification.errors import CallBudgetExhausted, CallCooldown
from app.verification.model import CallStatus
from tests.integration.conftest import run
from tests.integration.test_fault_table import production_settings

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "app/pages/shared"
PAGES = {"console": ROOT / "app/pages/console/static", "demo": ROOT / "app/sandbox/demo/static"}


def names(page: str) -> set[str]:
    """Return the names of the files of a page, beside which it finds those that all pages share."""
    return {str(path.relative_to(root)) for root in (SHARED, PAGES[page]) for path in root.rglob("*") if path.is_file()}


async def test_the_root_of_the_sandbox_redirects_to_the_demo_page(api: httpx.AsyncClient) -> None:
    answer = await api.get("/")

    assert (answer.status_code, answer.headers["Location"]) == (307, "/demo")


@pytest.mark.parametrize(("page", "name"), [(page, name) for page in PAGES for name in sorted(names(page))])
async def test_each_file_is_served_and_refers_only_to_existing_files(
    api: httpx.AsyncClient, page: str, name: str
) -> None:
    answer = await api.get(f"/{page}/{name}")

    assert answer.status_code == 200
    assert re.match(r"text/(html|css|javascript); charset=utf-8|image/svg\+xml", answer.headers["Content-Type"])
    named = re.findall(rf'(?:src|href)="{page}/([\w/]+\.\w+)"', answer.text)
    folder = Path(name).parent
    named += [str(folder / module) for module in re.findall(r'from "\./([^"]+)"', answer.text)]
    assert set(named) <= names(page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|style=|\son\w+=|innerHTML", answer.text)


@pytest.mark.parametrize("page", PAGES)
def test_each_file_of_a_page_is_used_by_it(page: str) -> None:
    """Languages are imported by name, and the page itself is opened by a person."""
    files = {name: (SHARED / name if (SHARED / name).exists() else PAGES[page] / name) for name in names(page)}
    text = "\n".join(path.read_text(encoding="utf-8") for path in files.values())

    assert [name for name in files if name != "index.html" and Path(name).name not in text] == []


@pytest.mark.parametrize("page", PAGES)
async def test_the_content_security_policy_allows_neither_inline_code_nor_other_hosts(
    api: httpx.AsyncClient, page: str
) -> None:
    policy = (await api.get(f"/{page}")).headers["Content-Security-Policy"]

    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy


async def test_the_demo_page_gets_the_channels_and_features_of_the_service(api: httpx.AsyncClient) -> None:
    config = (await api.get("/demo/config.json")).json()

    assert config["channels"][0] == "voice"
    described = (await api.get("/openapi.json")).json()["paths"]
    assert config["events"] is ("/verify/{verification_id}/events" in described)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", ["none.js", "../page.py", "%2e%2e/page.py", "js", "__init__.py"])
async def test_an_unknown_file_is_not_found(api: httpx.AsyncClient, page: str, name: str) -> None:
    answer = await api.get(f"/{page}/{name}")

    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_production_has_the_console_and_no_demo_page(redis_url: str) -> None:
    async with run(create_app(production_settings(redis_url, "http://127.0.0.1:1"))) as production:
        statuses = {
            path: (await production.get(path)).status_code
            for path in ("/console", "/console/js/main.js", "/", "/demo", "/demo/js/main.js", "/demo/config.json")
        }
        config = (await production.get("/console/config.json")).json()

    assert list(statuses.values()) == [200, 200, 404, 404, 404, 404]
    assert config == {"webhook_log": False}


def test_the_description_of_the_api_has_no_pages() -> None:
    assert not {"/", "/console", "/demo"} & set(create_api().openapi()["paths"])


@pytest.mark.parametrize("language", ["en", "ru"])
def test_the_console_has_a_text_for_every_word_of_the_journal(language: str) -> None:
    text = (PAGES["console"] / f"js/texts/{language}.js").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^  (\w+): \{\n(.*?)^  \},", text, re.DOTALL | re.MULTILINE))
    have = {name: set(re.findall(r"(\w+): \"", section)) for name, section in sections.items()}
    kinds: list[type[StrEnum]] = [Outcome, CallStatus, Ending, Channel]

    assert {str(word) for kind in kinds for word in kind} <= have["words"]
    verdicts = {*Outcome, *Ending, CallStatus.BUSY, CallStatus.NO_ANSWER, CallStatus.FAILED} - {Outcome.REFUSED}
    assert {str(word) for word in verdicts} == have["advice"]

    table = (ROOT / "docs/limits.md").read_text(encoding="utf-8").partition("| `limit` |")[2].partition("\n\n")[0]
    limits = {name for row in table.splitlines() for name in re.findall(r"`([a-z]+_[a-z_]+)`", row.split(" | ")[0])}
    of_checks_alone = {"failed_checks_per_address", "failed_checks_per_client", "client_ip"}
    others = {CallCooldown.limit, CallBudgetExhausted.limit, "provider_unavailable", "provider_balance_too_low"}
    assert have["refusals"] == (limits - of_checks_alone - {"verification_id", "retry_after"}) | others


def test_the_console_offers_the_channels_and_outcomes_of_the_service() -> None:
    script = (PAGES["console"] / "js/attempts.js").read_text(encoding="utf-8")
    offered = {
        name: set(re.findall(r'"(\w+)"', values))
        for name, values in re.findall(r"const (\w+) = \[(.*?)\];", script, re.DOTALL)
    }

    assert offered["CHANNELS"] == set(Channel)
    assert offered["OUTCOMES"] <= set(Result)


def test_the_wheel_contains_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where a build backend looks for the project
    wheel = importlib.import_module("flit_core.buildapi").build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / wheel) as built:
        whole = set(built.namelist())

    folders = [SHARED, *PAGES.values(), ROOT / "app/api/docs_page"]
    files = {str(path.relative_to(ROOT)) for folder in folders for path in folder.rglob("*.*")}
    assert len(files) > 30
    assert files <= whole
