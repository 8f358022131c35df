"""Makes the rules of verifications from the settings, the default ones and those of each client, and the prices."""

from dataclasses import replace
from datetime import timedelta

from app.settings.clients import ClientSettings
from app.settings.settings import Settings
from app.verification.channels import Channel
from app.verification.policy import DAY, HOUR, Limit, Policies, Policy
from app.verification.stats import CallPrices

_MINUTE = timedelta(minutes=1)
_FAILED_CHECKS_A_DAY = {4: 15, 5: 30, 6: 50}  # by the length of a code: guessed in a day with less than 0.2 %


def make_policies(settings: Settings) -> Policies:
    """Make the default rules, and those of the clients with settings of their own."""
    default = _default_policy(settings)
    return Policies(default, {name: _client_policy(own, default) for name, own in settings.clients.items()})


def make_prices(settings: Settings) -> CallPrices:
    """Make the prices of calls; where a channel has none of its own, those of any answered call."""
    call = settings.call
    answered = dict.fromkeys(Channel, call.price_rub) | dict(call.prices_rub)
    return CallPrices(answered=answered, unanswered=answered | dict(call.unanswered_prices_rub))


def _default_policy(settings: Settings) -> Policy:
    limit = settings.limit
    shortest = min(channel.rules.code_length or settings.code.length for channel in settings.used_channels)
    failed_checks = limit.failed_checks_per_phone or _FAILED_CHECKS_A_DAY[shortest]
    return Policy(
        code_length=settings.code.length,
        lifetime=timedelta(seconds=settings.code.lifetime_seconds),
        calls=settings.call.limit,
        checks=settings.check.limit,
        cooldowns=tuple(timedelta(seconds=pause) for pause in settings.call.cooldowns_seconds),
        purposes=frozenset(settings.purposes),
        channels=settings.enabled_channels,
        operator_channels=dict(settings.operator_channels),
        denied_prefixes=tuple(settings.phone.denied_prefixes),
        allowed_prefixes=tuple(settings.phone.allowed_prefixes),
        repeat=settings.code.repeat,
        flash_call_checks=settings.check.flash_call_limit,
        earliest_dial=timedelta(seconds=settings.plusofon.hook_delay_seconds),
        call_timeout=settings.provider_timeout,
        calls_per_phone=(
            Limit("calls_per_phone_hour", limit.calls_per_phone_hour, HOUR),
            Limit("calls_per_phone_day", limit.calls_per_phone_day, DAY),
        ),
        calls_per_address=Limit("calls_per_address", limit.calls_per_address, 10 * _MINUTE),
        calls_per_range=Limit("calls_per_range", limit.calls_per_range, HOUR),
        calls_per_client=(Limit("calls_per_client", limit.calls_per_client, _MINUTE),),
        calls_per_day=Limit("calls_per_day", limit.calls_per_day, DAY),
        failed_checks_per_phone=Limit("failed_checks_per_phone", failed_checks, DAY),
        failed_checks_per_address=Limit("failed_checks_per_address", limit.failed_checks_per_address, 10 * _MINUTE),
        failed_checks_per_client=Limit("failed_checks_per_client", limit.failed_checks_per_client, 10 * _MINUTE),
        test_starts_per_client=Limit("test_starts_per_client", limit.test_starts_per_client, _MINUTE),
    )


def _client_policy(own: ClientSettings, default: Policy) -> Policy:
    """Return the default rules with what the settings of a client change."""
    calls, *_ = default.calls_per_client
    failed_checks = default.failed_checks_per_client
    calls_per_client = [replace(calls, count=own.calls_per_minute or calls.count)]
    if own.calls_per_day:
        calls_per_client.append(Limit("calls_per_client_day", own.calls_per_day, DAY))
    return replace(
        default,
        purposes=default.purposes if own.purposes is None else frozenset(own.purposes),
        channels=tuple(dict.fromkeys(own.channels)) if own.channels else default.channels,
        calls_per_client=tuple(calls_per_client),
        failed_checks_per_client=replace(failed_checks, count=own.failed_checks or failed_checks.count),
    )
