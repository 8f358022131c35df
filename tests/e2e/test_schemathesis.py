"""Valid and invalid requests generated from the schema: no undocumented response, no 500, no access without a key."""

import hashlib
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS

from app.main import create_api
from tests.e2e.conftest import running

KEY = "not-a-real-key"
# A string that matches the schema may still be an invalid phone number.
NOT_CHECKED = ["positive_data_acceptance"]
# The check does not know that a body that is too long gets a 413 before it is validated, nor that a query has no lists:
# one of a single value is sent as that, an empty one is not sent at all, and the request may well be valid.
NOT_CHECKED_IF_NOT_SEEN = [*NOT_CHECKED, "negative_data_rejection"]

schema = schemathesis.openapi.from_dict(create_api().openapi())


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    hashed = hashlib.sha256(KEY.encode()).hexdigest()
    keys = f"fuzz:{hashed}"
    with running(tmp_path_factory.mktemp("schemathesis"), API_KEYS=keys, ADMIN_KEYS=keys, LOG_LEVEL="error") as demo:
        yield demo.base_url


@schema.parametrize()
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_the_api_conforms_to_its_schema(case: schemathesis.Case[Any], base_url: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    response = case.call(base_url=base_url, headers=headers)
    is_too_long = response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    is_seen = not is_too_long and not any(isinstance(value, list | dict) for value in (case.query or {}).values())
    not_checked: list[Any] = CHECKS.get_by_names(NOT_CHECKED if is_seen else NOT_CHECKED_IF_NOT_SEEN)
    case.validate_response(response, headers=headers, excluded_checks=not_checked)
