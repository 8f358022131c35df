"""Which rules follow from the settings: those for everybody, and those of each client."""

from dataclasses import replace
from datetime import timedelta

from app.settings.sections import ClientSettings
from app.settings.settings import Settings
from app.verification.policy import DAY, HOUR, Limit, Policies, Policy

_MINUTE = timedelta(minutes=1)
_FAILED_CHECKS_A_DAY = {4: 15, 5: 30, 6: 50}  # by the length of a code: below 0.2 % of luck in a day


def make_policies(settings: Settings) -> Policies:
    """Make the rules for everybody, and those of the clients that have their own."""
    everybodys = _policy(settings)
    return Policies(everybodys, {name: _of_client(own, everybodys) for name, own in settings.clients.items()})


def _policy(settings: Settings) -> Policy:
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
        patience=settings.provider_timeout,
        calls_per_phone=(
            Limit("calls_per_phone_hour", limit.calls_per_phone_hour, HOUR),
            Limit("calls_per_phone_day", limit.calls_per_phone_day, DAY),
        ),
        calls_per_address=Limit("calls_per_address", limit.calls_per_address, 10 * _MINUTE),
        calls_per_range=Limit("calls_per_range", limit.calls_per_range, HOUR),
        calls_per_client=(_calls_per_client(limit.calls_per_client),),
        calls_per_day=Limit("calls_per_day", limit.calls_per_day, DAY),
        failed_checks_per_phone=Limit("failed_checks_per_phone", failed_checks, DAY),
        failed_checks_per_address=Limit("failed_checks_per_address", limit.failed_checks_per_address, 10 * _MINUTE),
        failed_checks_per_client=_failed_checks_per_client(limit.failed_checks_per_client),
        test_starts_per_client=Limit("test_starts_per_client", limit.test_starts_per_client, _MINUTE),
    )


def _of_client(own: ClientSettings, policy: Policy) -> Policy:
    """Change what a client's own settings say, and nothing else."""
    calls_per_client = (_calls_per_client(own.calls_per_minute),) if own.calls_per_minute else policy.calls_per_client
    if own.calls_per_day:
        calls_per_client += (Limit("calls_per_client_day", own.calls_per_day, DAY),)
    failed_checks = _failed_checks_per_client(own.failed_checks) if own.failed_checks else None
    return replace(
        policy,
        purposes=frozenset(own.purposes) if own.purposes is not None else policy.purposes,
        channels=tuple(dict.fromkeys(own.channels)) if own.channels else policy.channels,
        calls_per_client=calls_per_client,
        failed_checks_per_client=failed_checks or policy.failed_checks_per_client,
    )


def _calls_per_client(count: int) -> Limit:
    return Limit("calls_per_client", count, _MINUTE)


def _failed_checks_per_client(count: int) -> Limit:
    return Limit("failed_checks_per_client", count, 10 * _MINUTE)
