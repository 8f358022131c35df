"""The OpenAPI description is valid, and keeps the rules of client generators and of linters such as Redocly's."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator

from app.api.schemas import CheckById, CheckByPhone, CheckVerificationRequest
from app.main import create_api, create_app
from app.settings import Settings
from app.verification.phone import parse_phone
from app.verification.webhooks import Event, EventType
from app.webhooks.endpoint import WebhookEndpoint

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
PUBLIC = {"/livez", "/readyz", "/problems/{slug}", "/.well-known/jwks.json"}
OPERATION_IDS = {
    "startVerification": "post /verify/start",
    "checkVerification": "post /verify/check",
    "getVerification": "get /verify/{verification_id}",
    "cancelVerification": "post /verify/{verification_id}/cancel",
    "followVerification": "get /verify/{verification_id}/events",
    "redeemToken": "post /verify/token/redeem",
    "getTokenKeys": "get /.well-known/jwks.json",
    "getProviderAccount": "get /provider/account",
    "getFraudGuardReport": "get /admin/guard",
    "listAttempts": "get /admin/attempts",
    "findAttempts": "post /admin/attempts/find",
    "getAttempts": "get /admin/attempts/{verification_id}",
    "listAudit": "get /admin/audit",
    "erasePhone": "post /admin/phones/erase",
    "listFailedWebhooks": "get /admin/webhooks/failed",
    "resendWebhook": "post /admin/webhooks/failed/{event_id}/resend",
    "unblockRange": "delete /admin/guard/{range}",
    "getLiveness": "get /livez",
    "getReadiness": "get /readyz",
    "getProblemType": "get /problems/{slug}",
}


@pytest.fixture(params=["production", "sandbox"], scope="module")
def description(request: pytest.FixtureRequest) -> dict[str, Any]:
    app = create_api()
    if request.param == "sandbox":
        app = create_app(Settings.model_validate({"mode": "sandbox", "secret": {"key": "x" * 40}}))
    schema: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    return schema


def operations(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in [*description["paths"].items(), *description["webhooks"].items()]:
        for method in METHODS & set(item):
            yield f"{method} {path}", item[method]


def walk(part: object, pointer: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Return every object of the description that is not inside an example, with a pointer to it."""
    if isinstance(part, dict):
        yield pointer, part
        for name, value in part.items():
            if name not in {"example", "examples"} or pointer.endswith("/properties"):
                yield from walk(value, f"{pointer}/{name}")
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from walk(value, f"{pointer}/{index}")


def examples(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Return the pointer, the schema and the value of each example: of media types, parameters, headers and schemas."""
    for pointer, part in walk(description):
        if pointer.endswith("/properties"):
            continue  # a field may be called "examples"
        schema = part.get("schema", part)
        if "example" in part:
            yield pointer, schema, part["example"]
        found = part.get("examples", [])
        values = [example["value"] for example in found.values()] if isinstance(found, dict) else found
        for value in values:
            yield pointer, schema, value


def closed(description: dict[str, Any]) -> dict[str, Any]:
    """Return the components, with ``additionalProperties: false`` in every model."""
    return {
        "schemas": {
            name: {"additionalProperties": False, **schema} if "properties" in schema else schema
            for name, schema in description["components"]["schemas"].items()
        }
    }


def test_it_is_valid_openapi_3_1(description: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(description).validate()


def test_every_example_fits_its_schema(description: dict[str, Any]) -> None:
    found = list(examples(description))
    for pointer, schema, value in found:
        whole = {**schema, "components": description["components"]}
        errors = Draft202012Validator(whole, format_checker=FormatChecker()).iter_errors(value)
        assert not [error.message for error in errors], pointer
    assert len(found) > 100


def test_no_example_has_a_field_that_its_schema_does_not_define(description: dict[str, Any]) -> None:
    for pointer, schema, value in examples(description):
        errors = Draft202012Validator({**schema, "components": closed(description)}).iter_errors(value)
        assert not [error.message for error in errors], pointer


def test_operation_ids_and_component_names_are_valid_identifiers(description: dict[str, Any]) -> None:
    for kind, parts in description["components"].items():
        assert all(re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) for name in parts), kind
    for name, operation in operations(description):
        assert re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", operation["operationId"]), name


def test_operation_ids_are_unique_and_stable(description: dict[str, Any]) -> None:
    ids = {operation["operationId"]: name for name, operation in operations(description)}
    assert len(ids) == len(list(operations(description)))
    assert {name: ids[name] for name in OPERATION_IDS} == OPERATION_IDS


def test_every_operation_declares_its_security_or_that_it_is_public(description: dict[str, Any]) -> None:
    known = set(description["components"]["securitySchemes"])
    for name, operation in operations(description):
        assert {scheme for asked in operation["security"] for scheme in asked} <= known, name
        path = name.partition(" ")[2]
        is_public = path in PUBLIC or path.startswith("/sandbox/") or path in description["webhooks"]
        assert (operation["security"] == []) is is_public, name


def test_every_operation_has_a_summary_a_description_and_a_success_response(description: dict[str, Any]) -> None:
    for name, operation in operations(description):
        assert operation["summary"], name
        assert operation["description"], name
        assert any(status.startswith("2") for status in operation["responses"]), name


def test_every_component_is_used_and_every_reference_resolves(description: dict[str, Any]) -> None:
    referenced = {part["$ref"] for _, part in walk(description) if isinstance(part.get("$ref"), str)}
    assert referenced == {f"#/components/schemas/{name}" for name in description["components"]["schemas"]}


def test_path_parameters_are_exactly_those_that_the_operations_describe(description: dict[str, Any]) -> None:
    for name, operation in operations(description):
        found = [(parameter["in"], parameter["name"]) for parameter in operation.get("parameters", ())]
        assert not [twice for twice, times in Counter(found).items() if times > 1], name
        assert {name for kind, name in found if kind == "path"} == set(re.findall(r"{(\w+)}", name))


def test_no_path_is_ambiguous_with_another(description: dict[str, Any]) -> None:
    """Except with a path without parameters, which is matched first (OpenAPI 3.1, section 4.8.8.2)."""
    templates = [re.sub(r"{\w+}", "{}", path) for path in description["paths"]]
    assert len(set(templates)) == len(templates)
    for path in templates:
        pattern = re.escape(path).replace(r"\{\}", "[^/]+")
        assert not [other for other in templates if "{}" in other and other != path and re.fullmatch(pattern, other)]


def test_the_licence_and_the_server_url_are_given(description: dict[str, Any]) -> None:
    assert description["info"]["license"] == {"name": "MIT", "identifier": "MIT"}
    assert description["servers"] == [{"url": "/"}]


def test_a_check_is_described_as_one_of_two_models(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    assert schemas["CheckVerificationRequest"] == {
        "oneOf": [{"$ref": "#/components/schemas/CheckById"}, {"$ref": "#/components/schemas/CheckByPhone"}]
    }
    fields = CheckVerificationRequest.model_fields
    assert set(CheckById.model_fields) | set(CheckByPhone.model_fields) == set(fields)
    assert schemas["CheckById"]["required"] == ["verification_id"]
    assert schemas["CheckByPhone"]["required"] == ["phone"]
    assert not schemas["CheckById"]["additionalProperties"]
    assert not schemas["CheckByPhone"]["additionalProperties"]


def test_check_responses_are_discriminated_by_status(description: dict[str, Any]) -> None:
    answer = description["paths"]["/verify/check"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    mapping = answer["discriminator"]["mapping"]
    assert answer["discriminator"]["propertyName"] == "status"
    assert {"$ref": mapping["verified"]} in answer["oneOf"]
    for status, reference in mapping.items():
        model = description["components"]["schemas"][reference.rpartition("/")[2]]
        assert model["properties"]["status"]["const"] == status


@pytest.mark.parametrize("kind", EventType)
@pytest.mark.parametrize("call_status", ["no_answer", None])
@pytest.mark.parametrize("full_phone", [True, False])
def test_a_delivered_webhook_matches_its_description(
    description: dict[str, Any], kind: EventType, call_status: str | None, *, full_phone: bool
) -> None:
    event = Event(
        id="1-0",
        type=kind,
        client="shop",
        verification_id="vrf_00",
        purpose="login",
        reference="order-1024" if call_status else None,
        channel="voice",
        phone=parse_phone("+79001234567"),
        status=kind.partition(".")[2] if kind in {"verification.verified", "verification.expired"} else "pending",
        call_status=call_status,
        at=datetime(2026, 1, 31, 9, tzinfo=UTC),
    )
    endpoint = WebhookEndpoint("https://shop.example/", (b"x" * 32,), full_phone=full_phone)
    body = endpoint.body(event)
    operation = description["webhooks"][kind]["post"]

    media = operation["requestBody"]["content"]["application/json"]
    Draft202012Validator({**media["schema"], "components": closed(description)}).validate(json.loads(body))
    assert media["example"]["type"] == kind
    headers = endpoint.headers(event, body, timestamp=1769850000)
    assert {parameter["name"] for parameter in operation["parameters"]} == set(headers)


def test_every_webhook_is_described(description: dict[str, Any]) -> None:
    assert set(description["webhooks"]) == set(EventType)
