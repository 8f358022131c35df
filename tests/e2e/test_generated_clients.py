"""Client generators produce typed, working clients from the OpenAPI description.

Python needs ``make .venv/.clients``; TypeScript and Redocly's linter need Node.js 20. If one is missing, its
tests are skipped. In CI a missing ``.venv/clients`` or a failed download with Node.js is a failure.
"""

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.main import create_api
from tests.e2e.conftest import Demo

OLDEST_NODE = 20  # that Redocly's linter runs on
IN_CI = bool(os.environ.get("CI"))
CLIENTS = Path(sys.prefix) / "clients/bin"
PHONE = "+79001234567"
PACKAGE = "generated_verify_client"
# Versions are pinned here: a lock file of npm names the address of its registry.
OPENAPI_TYPESCRIPT, TYPESCRIPT, REDOCLY = "openapi-typescript@7.13.0", "typescript@5.9.3", "@redocly/cli@2.77.0"

CONSUMER = """
import type { components, operations } from "./api";

type Check = components["schemas"]["CheckVerificationRequest"];
export const byId: Check = { verification_id: "vrf_00", code: "123456" };
export const byPhone: Check = { phone: "+79001234567", purpose: "login", code: "123456" };
// @ts-expect-error a check names a verification
export const neither: Check = { code: "123456" };
export const named = (check: Check): string => ("phone" in check ? check.phone : check.verification_id);

type Checked = operations["checkVerification"]["responses"][200]["content"]["application/json"];
export function say(answer: Checked): string | number {
  switch (answer.status) {
    case "verified":
      return answer.token;
    case "pending":
      return answer.checks_left;
    case "locked":
      return answer.retry_after;
  }
}
export type Started = operations["startVerification"]["responses"][201]["content"]["application/json"];
export const idOf = (started: Started): string => started.verification_id;
export const referenceOf = (started: Started): string | null | undefined => started.reference;
"""


@pytest.fixture
def description(tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(create_api().openapi()), encoding="utf-8")
    return path


@pytest.fixture
def module(description: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Generate the Python client outside the repository; return a function that imports one of its modules."""
    generator = CLIENTS / "openapi-python-client"
    if not generator.exists():
        (pytest.fail if IN_CI else pytest.skip)(f"{generator} is missing: make .venv/.clients")
    made = subprocess.run(
        [generator, "generate", "--fail-on-warning", "--meta=none", "--path", description, "--output-path", PACKAGE],
        cwd=tmp_path,
        env={"PATH": f"{CLIENTS}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    return lambda name: importlib.import_module(f"{PACKAGE}.{name}")


def npx(folder: Path, *command: str | Path, packages: tuple[str, ...]) -> None:
    """Run an npm program. Skip the test without Node.js and, outside CI, if the packages cannot be downloaded."""
    program = shutil.which("npx")
    if not program:
        pytest.skip("npx is missing")
    base: list[str | Path] = [program, "--yes", *(f"--package={package}" for package in packages), "--"]
    fetched = subprocess.run([*base, "node", "--version"], cwd=folder, capture_output=True, text=True, check=False)
    if fetched.returncode:
        (pytest.fail if IN_CI else pytest.skip)(f"npm cannot install {packages}: {fetched.stderr}")
    if int(fetched.stdout.lstrip("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node.js {fetched.stdout.strip()} is too old")
    done = subprocess.run([*base, *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("by", ["id", "phone"])
def test_a_generated_python_client_can_start_check_and_redeem(
    module: Callable[[str], Any], demo: Demo, by: str
) -> None:
    models = module("models")
    with module("client").Client(base_url=demo.base_url) as client:
        consent = models.Consent(version="calls-2026-01", at=datetime(2026, 1, 31, 8, 59, 30, tzinfo=UTC))
        wanted = models.StartVerificationRequest(phone=PHONE, reference="order-1024", consent=consent)
        started = module("api.verify.start_verification").sync(client=client, body=wanted, idempotency_key="one")
        assert isinstance(started, models.Verification)
        assert (started.reference, started.consent.version) == ("order-1024", consent.version)
        assert started.consent.at == consent.at
        assert (started.status, started.call.status) == (models.Status.PENDING, models.CallStatus.INITIATED)

        code = demo.hear(PHONE)
        named: dict[str, Callable[[str], Any]] = {
            "id": lambda code: models.CheckById(verification_id=started.verification_id, code=code),
            "phone": lambda code: models.CheckByPhone(phone=PHONE, code=code),
        }
        check = module("api.verify.check_verification").sync
        wrong = check(client=client, body=named[by]("000000" if code != "000000" else "000001"))
        assert isinstance(wrong, models.NotVerified)
        assert wrong.checks_left == started.checks_left - 1
        verified = check(client=client, body=named[by](code))
        assert isinstance(verified, models.Verified)
        assert verified.phone == PHONE

        redeem = module("api.tokens.redeem_token").sync
        body = models.RedeemTokenRequest(token=verified.token, purpose=verified.purpose)
        redeemed = redeem(client=client, body=body)
        assert isinstance(redeemed, models.RedeemedToken)
        assert (redeemed.phone, redeemed.verification_id) == (PHONE, started.verification_id)
        assert (verified.reference, redeemed.reference) == ("order-1024", "order-1024")
        again = redeem(client=client, body=body)
        assert isinstance(again, models.Problem)
        assert again.type_ == "/problems/token-already-redeemed"


def test_a_generated_python_client_has_typed_request_bodies(module: Callable[[str], Any]) -> None:
    models = module("models")
    bodies = {
        "api.verify.start_verification": models.StartVerificationRequest,
        "api.verify.check_verification": models.CheckById | models.CheckByPhone,
        "api.tokens.redeem_token": models.RedeemTokenRequest,
    }
    for name, wanted in bodies.items():
        assert inspect.signature(module(name).sync).parameters["body"].annotation == wanted


def test_generated_typescript_types_distinguish_the_results_of_a_check(description: Path, tmp_path: Path) -> None:
    packages = (OPENAPI_TYPESCRIPT, TYPESCRIPT)
    npx(tmp_path, "openapi-typescript", description.name, "--output", "api.ts", packages=packages)
    (tmp_path / "consumer.ts").write_text(CONSUMER, encoding="utf-8")
    npx(tmp_path, "tsc", "--noEmit", "--strict", "--noImplicitReturns", "consumer.ts", packages=packages)


def test_redocly_reports_no_warnings(description: Path, tmp_path: Path) -> None:
    # Some routes answer every request with 2xx or 503; documenting a 4xx there would be wrong.
    rules = ("--extends=recommended-strict", "--skip-rule=operation-4xx-response")
    npx(tmp_path, "redocly", "lint", description.name, *rules, packages=(REDOCLY,))
