"""The examples of docs/integration, run exactly as written if the language is installed, else only read."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.problem_types import PROBLEM_TYPES
from app.main import create_api
from tests.e2e.conftest import Demo, free_port, with_first_cooldown_of_production, without_cooldowns
from tests.waiting import PATIENCE

DOCS = Path(__file__).parents[2] / "docs" / "integration"
PHONE = "+79001234567"
ANOTHER = "+79009876543"
THIRD = "+79009876544"
LANGUAGES = ("curl", "python", "javascript", "go", "php")
OPENAPI = create_api().openapi()


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / f"{document}.md").read_text(), re.DOTALL)


def environment(demo: Demo, **more: str) -> dict[str, str]:
    given = {"VERIFY_URL": demo.base_url, "VERIFY_KEY": "the-sandbox-asks-for-none", "NO_COLOR": "1", **more}
    kept = ("PATH", "HOME", "GOCACHE", "GOPATH", "LD_LIBRARY_PATH", "PHPRC", "PHP_INI_SCAN_DIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | given


def wrong(code: str) -> str:
    return code[:-1] + str((int(code[-1]) + 1) % 10)


def calls(demo: Demo, phone: str = PHONE) -> int:
    return len(demo.api.get(f"/sandbox/phones/{phone}/calls").json()["calls"])


LAST_TRY = "Please start again in "


@contextlib.contextmanager
def listening(command: list[str], port: int, **options: Any) -> Iterator[str]:  # noqa: ANN401 - Popen's own
    """Run a server within the context; return its URL."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not httpx_reaches(url := f"http://127.0.0.1:{port}"):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield url
        finally:
            process.kill()


def httpx_reaches(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def run_curl(demo: Demo, folder: Path) -> None:
    script = "".join(blocks("curl", "sh"))  # the second continues in the shell of the first
    called, caller = "+79004567890", "+79005678901"

    done = subprocess.run(
        ["sh", "-eu", "-c", script],
        env=environment(demo),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    answers = [json.loads(line) for line in done.stdout.splitlines()]
    outcomes = [answer.get("type", answer.get("status", answer.get("redeemed"))) for answer in answers]
    assert outcomes == [
        "pending",
        "/problems/call-cooldown",
        "pending",
        "pending",
        True,
        "/problems/token-already-redeemed",
        "canceled",
        "pending",
        "completed",
        "verified",
    ]
    assert answers[0]["verification_id"] == answers[1]["verification_id"] == answers[2]["verification_id"]
    assert answers[3]["checks_left"] == 4
    assert answers[4]["phone"] == called
    assert answers[9]["phone"] == caller
    assert calls(demo, called) == 1


@contextlib.contextmanager
def javascript(demo: Demo, folder: Path) -> Iterator[httpx.Client]:
    """Serve the example; return an HTTP client of it."""
    (server,), (page,) = blocks("javascript", "js"), blocks("javascript", "html")
    (script,) = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    (folder / "server.mjs").write_text(server)
    (folder / "sign-up.html").write_text(page)
    (folder / "page.mjs").write_text(script)
    subprocess.run(["node", "--check", str(folder / "page.mjs")], check=True, timeout=30)

    port = free_port()
    with (
        listening(["node", str(folder / "server.mjs")], port, env=environment(demo, PORT=str(port))) as url,
        httpx.Client(base_url=url, timeout=PATIENCE) as browser,
    ):
        yield browser


def run_javascript(demo: Demo, folder: Path) -> None:
    with javascript(demo, folder) as browser:
        assert browser.get("/").text == (folder / "sign-up.html").read_text()
        assert browser.post("/sign-up", json={"code": "123456"}).json() == {"say": "Please start again."}
        assert browser.post("/sign-up/call", json={"phone": "12345"}).json() == {"say": "Please check the number."}
        started = browser.post("/sign-up/call", json={"phone": PHONE}).json()
        assert started == {"phone": "+7900•••4567", "resend_in": 60}
        early = browser.post("/sign-up/call", json={"phone": PHONE}).json()
        assert re.fullmatch(r"Please try again in 5\d s\.|Please try again in 60 s\.", early["say"])
        code = demo.hear(PHONE)
        missed = browser.post("/sign-up", json={"code": wrong(code)}).json()
        assert missed == {"say": "That was not the code. 4 more tries."}
        with browser.stream("GET", "/sign-up/events") as events:
            assert events.headers["content-type"].startswith("text/event-stream")
            lines = events.iter_lines()
            assert '"status":"pending"' in next(line for line in lines if line.startswith("data:"))
            with ThreadPoolExecutor(4) as pool:  # the form is submitted four times at once, as by repeated clicks
                sent = [pool.submit(browser.post, "/sign-up", json={"code": code}) for _ in range(4)]
            assert [answer.result().json() for answer in sent] == [{"say": "Welcome!"}] * 4
            assert '"status":"verified"' in next(line for line in lines if line.startswith("data:"))
        key = {"Idempotency-Key": "one-attempt"}
        first, second = (browser.post("/sign-up/call", json={"phone": THIRD}, headers=key).json() for _ in range(2))
        assert first == second
        assert "resend_in" in first
        assert calls(demo, THIRD) == 1
        browser.post("/sign-up/call", json={"phone": ANOTHER})
        code = demo.hear(ANOTHER)
        said = [browser.post("/sign-up", json={"code": wrong(code)}).json()["say"] for _ in range(5)]
        assert [words.startswith(LAST_TRY) for words in said] == [False] * 4 + [True]


@contextlib.contextmanager
def go(demo: Demo, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the example."""
    (source,) = blocks("go", "go")
    (folder / "sign-up.go").write_text(source)
    local = environment(demo, GOPROXY="off", GOTOOLCHAIN="local", GOFLAGS="-mod=mod", CGO_ENABLED="0")
    for command in (["vet", "sign-up.go"], ["build", "-o", "sign-up", "sign-up.go"]):
        subprocess.run(["go", *command], cwd=folder, env=local, check=True, timeout=300)

    with subprocess.Popen(
        [str(folder / "sign-up")], env=local, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as person:
        yield person


def run_go(demo: Demo, folder: Path) -> None:
    with go(demo, folder) as person:
        assert person.stdin
        person.stdin.write(f"{PHONE}\n\n")  # and another call at once
        person.stdin.flush()
        code = demo.hear(PHONE)
        said, _ = person.communicate(f"{wrong(code)}\n{code}\n", timeout=30)
    lines = said.splitlines()
    assert lines[1] == "We are calling +7900•••4567. The code, or nothing for another call?"
    assert re.fullmatch(r"Please try again in \d+ s\.", lines[2])
    assert lines[3:] == ["That was not the code. More tries: 4", f"Welcome, {PHONE}"]

    with go(demo, folder) as person:
        assert person.stdin
        person.stdin.write(f"{ANOTHER}\n")
        person.stdin.flush()
        code = demo.hear(ANOTHER)
        said, _ = person.communicate(f"{wrong(code)}\n" * 5, timeout=30)
    assert said.splitlines()[-2] == "That was not the code. More tries: 1"
    assert said.splitlines()[-1].startswith(LAST_TRY)


@contextlib.contextmanager
def php(demo: Demo, folder: Path) -> Iterator[Callable[..., str]]:
    """Serve the example; return a function that submits its form and returns the message."""
    (page,) = blocks("php", "php")
    (folder / "index.php").write_text(page)

    port = free_port()
    extensions = ["-d", "extension=curl"] if b"\ncurl\n" not in subprocess.check_output(["php", "-m"]) else []
    command = ["php", *extensions, "-d", f"session.save_path={folder}", "-S", f"127.0.0.1:{port}", "-t", str(folder)]
    with (
        listening(command, port, env=environment(demo)) as url,
        httpx.Client(base_url=url, timeout=PATIENCE) as browser,
    ):

        def said(**form: str) -> str:
            return browser.post("/", data=form).text.rpartition('<p role="status">')[2].removesuffix("</p>\n")

        yield said


def run_php(demo: Demo, folder: Path) -> None:
    with php(demo, folder) as said:
        assert said(phone="12345") == "Please check the number."
        assert said(phone=PHONE) == "We are calling +7900•••4567. Another call is possible in 60 s."
        assert re.fullmatch(r"Please try again in \d+ s\.", said(phone=PHONE))
        code = demo.hear(PHONE)
        assert said(code=wrong(code)) == "That was not the code. 4 more tries."
        assert said(code=code) == "Welcome!"


PROGRAMS: Mapping[str, Callable[[Demo, Path], None]] = {
    "curl": run_curl,
    "node": run_javascript,
    "go": run_go,
    "php": run_php,
}


# An example whose language is not installed is not run; the names in it are compared with the API below.
@with_first_cooldown_of_production
@pytest.mark.parametrize("program", [name for name in PROGRAMS if shutil.which(name)])
def test_each_example_signs_an_end_user_up(program: str, demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "example"
    folder.mkdir()

    PROGRAMS[program](demo, folder)

    if program != "curl":  # it uses its own numbers
        assert calls(demo) == 1  # despite the repeated requests


def call_again_with_javascript(demo: Demo, folder: Path) -> None:
    with javascript(demo, folder) as browser:
        browser.post("/sign-up/call", json={"phone": ANOTHER})
        again = {"phone": PHONE, "again": True}
        browser.post("/sign-up/call", json=again)
        code = demo.hear(PHONE)
        browser.post("/sign-up/call", json=again)
        assert browser.post("/sign-up", json={"code": code}).json() == {"say": "Welcome!"}
        assert browser.post("/sign-up/call", json=again).status_code == 201
    assert calls(demo) == 3


def call_again_with_go(demo: Demo, folder: Path) -> None:
    with go(demo, folder) as person:
        assert person.stdin
        person.stdin.write(f"{PHONE}\n")
        person.stdin.flush()
        first = demo.hear(PHONE)
        person.stdin.write("\n")
        person.stdin.flush()
        while (second := demo.hear(PHONE)) == first:
            assert person.poll() is None
        said, _ = person.communicate(f"{second}\n", timeout=30)
    assert said.splitlines()[2:] == [f"Welcome, {PHONE}"]
    assert calls(demo) == 2


def call_again_with_php(demo: Demo, folder: Path) -> None:
    with php(demo, folder) as said:
        said(phone=ANOTHER)
        said(phone=PHONE)
        code = demo.hear(PHONE)
        said(phone=PHONE)
        assert said(code=code) == "Welcome!"
        assert said(phone=PHONE).startswith("We are calling")
    assert calls(demo) == 3


CALL_AGAIN: Mapping[str, Callable[[Demo, Path], None]] = {
    "node": call_again_with_javascript,
    "go": call_again_with_go,
    "php": call_again_with_php,
}


@without_cooldowns
@pytest.mark.parametrize("program", [name for name in CALL_AGAIN if shutil.which(name)])
def test_a_resend_in_each_example_uses_the_same_verification_while_it_is_pending(
    program: str, demo: Demo, tmp_path: Path
) -> None:
    """Both codes are valid; another phone, or a verified one, gets a new verification."""
    folder = tmp_path / "example"
    folder.mkdir()

    CALL_AGAIN[program](demo, folder)


@without_cooldowns
def test_a_resend_of_the_python_module_uses_the_same_verification_while_it_is_pending(
    demo: Demo, python: dict[str, Any]
) -> None:
    verify = python["verify"]

    first = verify.start(PHONE, "192.0.2.1")
    code = demo.hear(PHONE)
    again = verify.start(PHONE, "192.0.2.1", first["verification_id"])
    other = verify.start(ANOTHER, "192.0.2.1", first["verification_id"])
    assert verify.check(again["verification_id"], code, "192.0.2.1")["verified"]
    later = verify.start(PHONE, "192.0.2.1", first["verification_id"])

    assert (again["verification_id"], again["calls_placed"]) == (first["verification_id"], 2)
    assert len({started["verification_id"] for started in (first, other, later)}) == 3


@without_cooldowns
async def test_a_resend_of_the_fastapi_routes_uses_the_same_verification(demo: Demo, python: dict[str, Any]) -> None:
    transport = httpx.ASGITransport(app=python["app"])
    async with httpx.AsyncClient(transport=transport, base_url="https://site", timeout=PATIENCE) as browser:
        await browser.post("/sign-up/call", json={"phone": PHONE})
        code = await asyncio.to_thread(demo.hear, PHONE)
        await browser.post("/sign-up/call", json={"phone": PHONE})
        right = await browser.post("/sign-up", json={"code": code})

    assert right.json() == {"welcome": True}
    assert calls(demo) == 2


@pytest.fixture
def python(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Make the module of python.md importable, and run the FastAPI snippet with it."""
    module, fastapi, _ = blocks("python", "python")
    (tmp_path / "verify.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VERIFY_URL", demo.base_url)
    monkeypatch.setenv("VERIFY_KEY", "the-sandbox-asks-for-none")
    names: dict[str, Any] = {"__name__": "main"}
    try:
        exec(compile(fastapi, "python.md", "exec", dont_inherit=True), names)
        yield names
        names["verify"].api.close()
    finally:
        sys.modules.pop("verify", None)


@with_first_cooldown_of_production
def test_the_python_module_verifies_a_phone_and_raises_refused(demo: Demo, python: dict[str, Any]) -> None:
    verify = python["verify"]

    started = verify.start("8 (900) 123-45-67", "192.0.2.1")
    with pytest.raises(verify.Refused, match="called again in") as refusal:
        verify.start(PHONE, "192.0.2.1")
    code = demo.hear(PHONE)
    missed = verify.check(started["verification_id"], wrong(code), "192.0.2.1")
    checked = verify.check(started["verification_id"], code, "192.0.2.1")
    proved = verify.redeem(checked["token"])
    with pytest.raises(verify.Refused) as again:
        verify.redeem(checked["token"])

    assert (refusal.value.slug, refusal.value.retry_after) == ("call-cooldown", pytest.approx(59, abs=3))
    assert (missed["verified"], missed["checks_left"]) == (False, 4)
    assert proved == PHONE
    assert (again.value.slug, again.value.retry_after) == ("token-already-redeemed", None)


def test_after_the_last_wrong_code_the_python_module_says_when_to_start_again(
    demo: Demo, python: dict[str, Any]
) -> None:
    verify = python["verify"]
    started = verify.start(PHONE, "192.0.2.1")
    code = demo.hear(PHONE)

    said = [verify.missed(verify.check(started["verification_id"], wrong(code), "192.0.2.1")) for _ in range(5)]
    with pytest.raises(verify.Refused) as locked:
        verify.check(started["verification_id"], code, "192.0.2.1")

    assert said[3] == "That was not the code. 1 more tries."
    assert said[4].startswith(LAST_TRY)
    assert (locked.value.slug, locked.value.words[:20]) == ("verification-locked", "Please try again in ")


class LosesAnswers(httpx.BaseTransport):
    """A transport that sends every request and loses the response to the first."""

    def __init__(self) -> None:
        self._real = httpx.HTTPTransport()
        self.sent = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._real.handle_request(request)
        self.sent += 1
        if self.sent == 1:
            answer.read()
            raise httpx.ReadTimeout("the response was lost")
        return answer

    def close(self) -> None:
        self._real.close()


def test_the_python_module_retries_a_request_whose_response_was_lost_without_another_call(
    demo: Demo, python: dict[str, Any]
) -> None:
    verify = python["verify"]
    verify.api.close()
    verify.api = httpx.Client(base_url=demo.base_url, transport=(transport := LosesAnswers()), timeout=PATIENCE)

    assert verify.start(PHONE, "192.0.2.1")["calls_placed"] == 1

    assert (transport.sent, calls(demo)) == (2, 1)


@with_first_cooldown_of_production
async def test_the_fastapi_routes_sign_an_end_user_up(demo: Demo, python: dict[str, Any]) -> None:
    app = python["app"]
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://site", timeout=PATIENCE) as browser:
        called = await browser.post("/sign-up/call", json={"phone": PHONE})
        early = await browser.post("/sign-up/call", json={"phone": PHONE})
        strange = await browser.post("/sign-up/call", json={"phone": "12345"})
        code = await asyncio.to_thread(demo.hear, PHONE)
        missed = await browser.post("/sign-up", json={"code": wrong(code)})
        right = await browser.post("/sign-up", json={"code": code})

    assert called.json() == {"phone": "+7900•••4567", "resend_in": 60, "checks_left": 5}
    assert (early.status_code, early.json()["reason"]) == (429, "call-cooldown")
    assert strange.json() == {"reason": "phone-not-callable", "say": "Please check the number.", "retry_after": None}
    assert strange.status_code == 422
    assert missed.json() == {"welcome": False, "say": "That was not the code. 4 more tries."}
    assert (right.json(), python["accounts"]) == ({"welcome": True}, {PHONE})


def test_the_django_views_compile_and_use_existing_names_of_the_module(python: dict[str, Any]) -> None:
    """Django is not installed here, so the views are not run."""
    views = blocks("python", "python")[2]

    compile(views, "python.md", "exec", dont_inherit=True)

    used = set(re.findall(r"verify\.(\w+)", views)) - {"py"}
    assert used == {"Refused", "start", "check", "missed", "redeem"}
    assert all(hasattr(python["verify"], name) for name in used)


@pytest.mark.parametrize("language", [*LANGUAGES, "README"])
def test_the_names_in_a_document_exist_in_the_api(language: str) -> None:
    """Paths with a placeholder for the id, fields of requests and responses, and slugs of problems."""
    text = (DOCS / f"{language}.md").read_text()

    paths = set(re.findall(r"(/verify/[a-z/$%{}().A-Z]*)", text))
    fields = set(re.findall(r"""\b(?:\w+_(?:id|ip|left|in|after)|verified|redeemed)\b""", text))
    slugs = set(re.findall(r"""`(?:\d+ )?([a-z]+-[a-z-]+)`|["']([a-z]+(?:-[a-z]+)+)["'](?=:| =>)""", text))

    assert paths
    assert fields
    for path in paths:
        assert named(path) in OPENAPI["paths"], path
    for field in fields:
        assert f'"{field}"' in json.dumps(OPENAPI), field
    for slug in filter(None, (part for pair in slugs for part in pair)):
        assert slug in PROBLEM_TYPES, slug


@pytest.mark.parametrize("language", [language for language in (*LANGUAGES, "README") if language != "curl"])
def test_every_document_has_a_message_for_each_problem_that_the_end_user_can_solve(language: str) -> None:
    slugs = {
        *("phone-not-callable", "validation-failed", "verification-not-found", "verification-already-used"),
        *("verification-canceled", "token-expired", "token-invalid", "token-already-redeemed"),
    }
    text = (DOCS / f"{language}.md").read_text()
    assert {slug for slug in slugs if slug in text} == slugs


def named(path: str) -> str:
    """Return a path in the form of the OpenAPI description, with its name for the id."""
    known = {"start", "check", "token", "redeem", "cancel", "events", "verify", ""}
    parts = [part if part in known else "{verification_id}" for part in path.split("/")]
    return "/".join(parts)
