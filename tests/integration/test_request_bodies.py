"""Request bodies that differ from the documented JSON, and what an error must not repeat of them."""

import json
from typing import Any

import httpx
import pytest

PHONE = "+79001234567"
JSON = {"Content-Type": "application/json"}


def resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = root["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def allows_null(schema: dict[str, Any], root: dict[str, Any]) -> bool:
    schema = resolve(schema, root)
    return schema.get("type") == "null" or any(allows_null(part, root) for part in schema.get("anyOf", ()))


def optional_fields(schema: dict[str, Any], root: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the optional fields of a body schema; for a union, those of each member."""
    members = [resolve(member, root) for member in schema.get("oneOf", [schema])]
    return [
        (name, field)
        for member in members
        for name, field in member["properties"].items()
        if name not in member.get("required", ())
    ]


async def test_every_optional_field_of_every_body_may_be_null(api: httpx.AsyncClient) -> None:
    """Each is sent alone, as null; the request may have other errors, but none about the null."""
    root = (await api.get("/openapi.json")).json()
    tried = []
    for path, operations in root["paths"].items():
        for method, operation in operations.items():
            if "requestBody" not in operation:
                continue
            body = resolve(operation["requestBody"]["content"]["application/json"]["schema"], root)
            for name, schema in optional_fields(body, root):
                answer = await api.request(method, path, json={name: None})
                wrong = {error["pointer"] for error in answer.json().get("errors", ())}
                assert allows_null(schema, root), f"{method} {path}: {name}"
                assert f"#/{name}" not in wrong, f"{method} {path}: {name}"
                tried.append((path, name))
    assert {
        ("/verify/start", "purpose"),
        ("/verify/start", "lang"),
        ("/verify/check", "code"),
        ("/verify/check", "purpose"),
        ("/verify/check", "client_ip"),
        ("/sandbox/faults", "kinds"),
    } <= set(tried)


@pytest.mark.parametrize("absent", ["verification_id", "phone"])
async def test_a_check_may_have_null_for_the_identifier_that_it_does_not_use(
    api: httpx.AsyncClient, absent: str
) -> None:
    """OpenAPI has one schema per way to identify a verification; the field of the other may be null."""
    used = {"verification_id": {"phone": PHONE}, "phone": {"verification_id": "vrf_00"}}[absent]
    answer = await api.post("/verify/check", json={**used, absent: None, "purpose": None, "code": "123456"})
    assert answer.json()["type"] == "/problems/verification-not-found"


async def test_null_is_the_same_as_an_omitted_field(api: httpx.AsyncClient) -> None:
    nothing = dict.fromkeys(["purpose", "channel", "channels", "lang", "client_ip"])
    started = (await api.post("/verify/start", json={"phone": PHONE, **nothing})).json()
    assert (started["purpose"], started["channel"], started["phone"]) == ("phone_verification", "voice", "+7900•••4567")

    faults = await api.put("/sandbox/faults", json={"share": 0.5, "kinds": None, "seed": None})
    assert len(faults.json()["kinds"]) > 1


async def test_a_required_or_unknown_field_must_not_be_null(api: httpx.AsyncClient) -> None:
    answer = await api.post("/verify/start", json={"phone": None, "unheard_of": None})
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/phone", "#/unheard_of"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
async def test_a_byte_order_mark_before_json_is_ignored(api: httpx.AsyncClient, encoding: str) -> None:
    started = await api.post("/verify/start", content=json.dumps({"phone": PHONE}).encode(encoding), headers=JSON)
    redeemed = await api.post(
        "/verify/token/redeem", content=json.dumps({"token": "x", "purpose": "login"}).encode(encoding), headers=JSON
    )

    assert started.status_code == 201
    assert redeemed.json()["type"] == "/problems/token-invalid"


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf{}", b"\xff\xfe{", b"\xef\xbb{}", b"\xff"]
)
async def test_invalid_json_after_a_byte_order_mark_is_refused(api: httpx.AsyncClient, content: bytes) -> None:
    answer = await api.post("/verify/start", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/validation-failed")


@pytest.mark.parametrize(
    "name",
    [
        PHONE,
        "8 (900) 123-45-67",
        "code=123456",
        "1234",
        "12\u200b34",
        "\u0661\u0662\u0663\u0664",
        "\u00b9\u00b2\u00b3\u2074",
        "\u2460\u2461\u2462\u2463",
        "phone_79001234567",
        "7-9-0-0",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/verify/start"), ("POST", "/verify/token/redeem"), ("PUT", "/sandbox/account")]
)
async def test_an_unknown_field_name_that_looks_like_a_phone_or_code_is_masked(
    api: httpx.AsyncClient, method: str, path: str, name: str
) -> None:
    answer = await api.request(method, path, json={name: "x"})

    assert {"pointer": "#/•••", "detail": "is not known here"} in answer.json()["errors"]
    assert name not in json.dumps(answer.json(), ensure_ascii=False)


async def test_any_other_unknown_field_name_is_shown(api: httpx.AsyncClient) -> None:
    answer = await api.post("/verify/start", json={"phone": PHONE, "phone_2": 1, "a/b~c": 1, "utm_2026": 1})
    pointers = [error["pointer"] for error in answer.json()["errors"]]
    assert pointers == ["#/phone_2", "#/a~1b~0c", "#/•••"]


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({}, [("#", "give either verification_id or phone")]),
        ({"code": "123456", "client_ip": "192.0.2.1"}, [("#", "give either verification_id or phone")]),
        ({"verification_id": None, "phone": None}, [("#", "give either verification_id or phone")]),
        ({"verification_id": "vrf_00", "phone": PHONE}, [("#", "give either verification_id or phone")]),
        (
            {"verification_id": "vrf_00", "purpose": "login"},
            [("#", "purpose goes with phone; a verification_id has its own")],
        ),
        ({"verification_id": "vrf_00", "phone": 5}, [("#/phone", "must be text")]),
        ({"phone": PHONE, "purpose": "No!"}, [("#/purpose", "has the wrong form")]),
        (
            {"verification_id": 5, "phone": 5, "code": 5, "client_ip": 5, "unheard_of": 5},
            [
                ("#/code", "must be text"),
                ("#/verification_id", "must be text"),
                ("#/phone", "must be text"),
                ("#/client_ip", "must be an IPv4 or IPv6 address, as text"),
                ("#/unheard_of", "is not known here"),
            ],
        ),
    ],
)
async def test_the_errors_of_a_check_point_at_the_fields_that_were_sent(
    api: httpx.AsyncClient, body: dict[str, Any], errors: list[tuple[str, str]]
) -> None:
    answer = await api.post("/verify/check", json=body)
    assert answer.status_code == 422
    assert [(error["pointer"], error["detail"]) for error in answer.json()["errors"]] == errors
