"""The rules that tests use: those of the default settings, with the voice as the only channel."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

from app.settings import Settings
from app.settings.policies import make_policies
from app.verification.channels import Channel
from app.verification.fraud_guard import GuardRules
from app.verification.policy import Policy
from app.verification.stats import CallPrices

_SETTINGS = Settings.model_validate({"mode": "sandbox", "channels": ["voice"]})
_POLICY = make_policies(_SETTINGS).default
_GUARD_RULES = _SETTINGS.guard.rules(allowed_prefixes=())


def make_policy(**overrides: Any) -> Policy:  # noqa: ANN401 - fields of a policy
    return replace(_POLICY, **overrides)


def make_guard_rules(**overrides: Any) -> GuardRules:  # noqa: ANN401 - fields of the rules
    return replace(_GUARD_RULES, **overrides)


def make_prices(rub: str = "3") -> CallPrices:
    """Return prices that are the same for all calls."""
    prices = dict.fromkeys(Channel, Decimal(rub))
    return CallPrices(answered=prices, unanswered=prices)
