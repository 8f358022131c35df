"""The published OpenAPI description is true: every example works, every response is described."""

import re
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from app.api.problem_types import PROBLEM_TYPES
from app.api.problems import MEDIA_TYPE
from app.settings import Settings
from app.verification.channels import Channel
from tests.integration.conftest import sandbox_settings

CONTRACT = {
    ("post", "/verify/start"),
    ("post", "/verify/check"),
    ("get", "/verify/{verification_id}"),
    ("post", "/verify/{verification_id}/cancel"),
    ("get", "/.well-known/jwks.json"),
    ("post", "/verify/token/redeem"),
    ("get", "/provider/account"),
    ("get", "/admin/guard"),
    ("delete", "/admin/guard/{range}"),
    ("get", "/livez"),
    ("get", "/readyz"),
}


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """Return settings with all channels, as in the sandbox; provider callbacks go to a closed port."""
    return sandbox_settings(redis_url, channels=None, public_url="http://127.0.0.1:9")


@pytest.fixture
async def schema(api: httpx.AsyncClient) -> dict[str, Any]:
    description: dict[str, Any] = (await api.get("/openapi.json")).json()
    return description


def operations(schema: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): operation for path, item in schema["paths"].items() for method, operation in item.items()}


def validator(schema: dict[str, Any], part: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**part, "components": schema["components"]})


async def test_it_is_openapi_3_1_with_every_operation_of_the_contract(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.1")
    assert set(operations(schema)) >= CONTRACT


async def test_every_operation_has_a_summary_a_description_and_an_id(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema).items():
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["operationId"], name


_NOT_FOUND = {
    "/problems/{slug}",
    "/admin/guard/{range}",
    "/admin/attempts/{verification_id}",
    "/admin/webhooks/failed/{event_id}/resend",
}


async def test_every_error_is_a_problem_with_a_valid_example(schema: dict[str, Any]) -> None:
    for (_, path), operation in operations(schema).items():
        for status, answer in operation["responses"].items():
            if status < "400" or path == "/readyz":
                continue
            assert set(answer["content"]) == {MEDIA_TYPE}, (path, status)
            media = answer["content"][MEDIA_TYPE]
            if status == "404" and path in _NOT_FOUND:
                continue  # a problem without a type of its own
            assert media["examples"], (path, status)
            for slug, example in media["examples"].items():
                validator(schema, media["schema"]).validate(example["value"])
                assert example["value"]["type"] == f"/problems/{slug}"
                assert str(example["value"]["status"]) == status


async def test_every_problem_type_is_documented_by_an_operation(schema: dict[str, Any]) -> None:
    described = {
        slug
        for operation in operations(schema).values()
        for answer in operation["responses"].values()
        for slug in answer.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
    }
    assert described == set(PROBLEM_TYPES)


async def test_the_request_examples_work_when_sent(api: httpx.AsyncClient, schema: dict[str, Any]) -> None:
    for path in ("/verify/start", "/verify/check"):
        body = operations(schema)["post", path]["requestBody"]["content"]["application/json"]
        assert body["examples"]
        for example in body["examples"].values():
            validator(schema, body["schema"]).validate(example["value"])
            answer = await api.post(path, json=example["value"])
            assert answer.status_code in {200, 201, 404, 429}, answer.text


async def test_each_channel_has_an_example_that_places_a_call(api: httpx.AsyncClient, schema: dict[str, Any]) -> None:
    body = operations(schema)["post", "/verify/start"]["requestBody"]["content"]["application/json"]

    answers = [await api.post("/verify/start", json=example["value"]) for example in body["examples"].values()]

    assert {answer.json()["channel"] for answer in answers if answer.status_code == 201} == set(Channel)


async def test_the_response_examples_match_their_schemas(schema: dict[str, Any]) -> None:
    seen = 0
    for (_, path), operation in operations(schema).items():
        for status, answer in operation["responses"].items():
            media = answer.get("content", {}).get("application/json", {})
            for example in media.get("examples", {}).values():
                validator(schema, media["schema"]).validate(example["value"])
                seen += 1
            has_body = "200" <= status < "400" and status != "204"
            assert not has_body or media.get("examples") or path not in {p for _, p in CONTRACT}, path
    assert seen >= len(CONTRACT)


async def test_real_responses_match_their_schemas(api: httpx.AsyncClient, schema: dict[str, Any]) -> None:
    started = await api.post("/verify/start", json={"phone": "+79001234567"})
    verification_id = started.json()["verification_id"]
    described = operations(schema)
    for answer, operation in (
        (started, described["post", "/verify/start"]),
        (await api.get(f"/verify/{verification_id}"), described["get", "/verify/{verification_id}"]),
        (
            await api.post("/verify/check", json={"verification_id": verification_id, "code": "000000"}),
            described["post", "/verify/check"],
        ),
        (
            await api.post(f"/verify/{verification_id}/cancel"),
            described["post", "/verify/{verification_id}/cancel"],
        ),
        (await api.get("/provider/account"), described["get", "/provider/account"]),
    ):
        media = operation["responses"][str(answer.status_code)]["content"]["application/json"]
        validator(schema, media["schema"]).validate(answer.json())


async def test_the_docs_page_loads_nothing_from_another_host_and_runs_nothing_inline(api: httpx.AsyncClient) -> None:
    page = await api.get("/docs")

    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"console", "demo"} <= set(assets)
    assert len(assets) == 13
    for asset in assets:
        assert not asset.startswith("/")  # relative: a proxy may have put the page under a prefix
        assert (await api.get(f"/{asset}")).status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "unsafe" not in page.headers["Content-Security-Policy"]


async def test_the_tags_are_described_and_in_the_order_of_use(schema: dict[str, Any]) -> None:
    names = [tag["name"] for tag in schema["tags"]]

    assert names[:5] == ["verify", "tokens", "provider", "operations", "admin"]
    assert names[-1] == "sandbox"
    assert all(tag["description"] for tag in schema["tags"])
    assert {tag for operation in operations(schema).values() for tag in operation["tags"]} == set(names)


async def test_every_parameter_is_described_and_every_required_one_has_an_example(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema).items():
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (name, parameter)
            assert parameter.get("example") or not parameter["required"], name


async def test_the_headers_of_successful_responses_are_described(
    api: httpx.AsyncClient, schema: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "one"}
    started = await api.post("/verify/start", json={"phone": "+79001234567"}, headers=key)
    again = await api.post("/verify/start", json={"phone": "+79001234567"}, headers=key)
    checked = await api.post("/verify/check", json={"phone": "+79001234567", "code": "000000"})
    meaningful = {"location", "ratelimit", "ratelimit-policy", "idempotent-replayed"}

    for answers, path, status in (([started, again], "/verify/start", "201"), ([checked], "/verify/check", "200")):
        described = {name.lower() for name in operations(schema)["post", path]["responses"][status]["headers"]}
        sent = {name for answer in answers for name in answer.headers} & meaningful
        assert described - {"idempotent-replayed"} == sent - {"idempotent-replayed"}
        assert "idempotent-replayed" in described
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_each_operation_declares_the_key_that_it_requires(schema: dict[str, Any]) -> None:
    schemes = schema["components"]["securitySchemes"]
    assert set(schemes) == {"ApiKey", "AdminKey"}
    assert {(scheme["type"], scheme["scheme"]) for scheme in schemes.values()} == {("http", "bearer")}
    for (_, path), operation in operations(schema).items():
        scheme = {"verify": "ApiKey", "provider": "AdminKey", "admin": "AdminKey"}.get(path.split("/")[1])
        assert operation["security"] == ([{scheme: []}] if scheme else []), path
