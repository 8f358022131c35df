"""The rules of verifications and of the fraud guard come from the settings, and their defaults stand only there."""

from dataclasses import MISSING, fields

from app.settings.sections import GuardSettings
from app.verification.fraud_guard import GuardRules
from app.verification.policy import Policy


def test_a_policy_has_no_defaults() -> None:
    assert [item.name for item in fields(Policy) if (item.default, item.default_factory) != (MISSING, MISSING)] == []


def test_the_rules_of_the_guard_have_no_default_for_what_is_a_setting() -> None:
    of_settings = {"enabled", "min_calls", "min_conversion", "allowed_prefixes"}

    assert {item.name for item in fields(GuardRules) if item.default is MISSING} == of_settings
    assert set(GuardSettings.model_fields) == {"enabled", "min_calls", "min_conversion_percent"}
