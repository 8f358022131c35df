"""The files of the demo page: served in sandbox mode only, complete, with a strict content security policy."""

import importlib
import re
import zipfile
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from app.main import create_api

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "app/sandbox/demo/static"
NAMES = sorted(str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.is_file())


async def test_the_root_redirects_to_the_demo_page(api: httpx.AsyncClient) -> None:
    answer = await api.get("/")

    assert (answer.status_code, answer.headers["Location"]) == (307, "/demo")


@pytest.mark.parametrize("name", NAMES)
async def test_each_file_is_served_and_refers_only_to_existing_files(api: httpx.AsyncClient, name: str) -> None:
    answer = await api.get(f"/demo/{name}")

    assert answer.status_code == 200
    assert re.match(r"text/(html|css|javascript); charset=utf-8|image/svg\+xml", answer.headers["Content-Type"])
    named = re.findall(r'(?:src|href)="/(?:demo/)?([\w/]+\.\w+)"', answer.text) if name.endswith("html") else []
    folder = Path(name).parent
    named += [str(folder / module) for module in re.findall(r'from "\./([^"]+)"', answer.text)]
    assert set(named) <= set(NAMES)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|style=|\son\w+=|innerHTML", answer.text)


async def test_the_content_security_policy_allows_neither_inline_code_nor_other_hosts(api: httpx.AsyncClient) -> None:
    policy = (await api.get("/demo")).headers["Content-Security-Policy"]

    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy


async def test_the_page_gets_the_channels_and_features_of_the_service(api: httpx.AsyncClient) -> None:
    config = (await api.get("/demo/config.json")).json()

    assert config["channels"][0] == "voice"
    described = (await api.get("/openapi.json")).json()["paths"]
    assert config["events"] is ("/verify/{verification_id}/events" in described)


@pytest.mark.parametrize("name", ["none.js", "../page.py", "%2e%2e/page.py", "js"])
async def test_an_unknown_file_is_not_found(api: httpx.AsyncClient, name: str) -> None:
    answer = await api.get(f"/demo/{name}")

    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_production_has_no_demo_page() -> None:
    paths = {getattr(route, "path", None) for route in create_api().routes}

    assert not {"/", "/demo", "/demo/{name:path}"} & paths


def test_the_package_and_the_wheel_contain_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    assert (files("app.sandbox.demo") / "static" / "index.html").is_file()

    monkeypatch.chdir(ROOT)  # where a build backend looks for the project
    wheel = importlib.import_module("flit_core.buildapi").build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / wheel) as built:
        whole = set(built.namelist())
    assert {f"app/sandbox/demo/static/{name}" for name in NAMES} <= whole
    assert {"app/api/docs_page/index.html", "app/api/docs_page/page.js", "app/api/docs_page/page.css"} <= whole
