"""The checks of ``doctor``: each is a function that returns what it found, and changes nothing."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from app.container import make_tokens
from app.providers.http import NeverSent, Reason, Unclear
from app.settings import Mode, Settings, misspelt_settings
from app.store.health import RedisHealth, RedisUnreachable, examine
from app.verification.errors import ProviderError, ProviderRejected, VerificationError
from app.verification.phone import Phone
from app.verification.ports import ProviderAccounts

_OLDEST_REDIS = (7,)  # the first with PEXPIRETIME
_SLOW = timedelta(milliseconds=5)  # a check is one round trip, and a start four
_CLOCK_DRIFTS = timedelta(seconds=2)
_CLOCK_IS_WRONG = timedelta(minutes=1)  # from here on, tokens are refused that are still good
_OTHER_FILES = 100  # the process's own, and connections to Redis
_RIGHTS = "Give its user the rights of docs/operations.md, section Redis."
_MADE_UP = Phone("+79001234567")  # only to sign a token

_OUTBOUND_PROXY = "Check OUTBOUND_PROXY, and that this machine may use that proxy."
_NOT_REACHED = {
    Reason.DNS: (
        "its name is not found in the DNS",
        "Check PLUSOFON_BASE_URL and the name servers of this machine; where only a proxy has any, set OUTBOUND_PROXY.",
    ),
    Reason.REFUSED: (
        "the connection was refused",
        "Check host and port of PLUSOFON_BASE_URL, and that no firewall refuses them.",
    ),
    Reason.NO_ROUTE: (
        "there is no route to it",
        "Check the network of this machine, and that PLUSOFON_BASE_URL has an address that it can reach (IPv4, IPv6).",
    ),
    Reason.TIMEOUT: (
        "no connection was made in time (PLUSOFON_CONNECT_TIMEOUT_SECONDS)",
        "Most often a firewall drops it: allow this machine to connect, or set OUTBOUND_PROXY.",
    ),
    Reason.CERTIFICATE: (
        "TLS failed, for its certificate is not trusted",
        "Check the clock of this machine; where a proxy of yours opens TLS, set OUTBOUND_CA_FILE to its authority.",
    ),
    Reason.TLS: (
        "TLS failed",
        "Check that PLUSOFON_BASE_URL names a port that speaks TLS, and that nothing on the way breaks it off.",
    ),
    Reason.PROXY_UNREACHABLE: ("the proxy is not reached", _OUTBOUND_PROXY),
    Reason.PROXY_REFUSED: (
        "the proxy refuses to connect",
        "407: check user and password in OUTBOUND_PROXY. 403: have it allow the host. 5xx: it does not reach the host.",
    ),
    Reason.OTHER: ("the connection failed", "Check PLUSOFON_BASE_URL and the network of this machine."),
}


class Result(StrEnum):
    """The result of a check: it works, it works but not as it should, or it does not work."""

    FINE = "ok"
    DOUBTFUL = "warning"
    WRONG = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found (``message``), and what to do about it; neither contains a secret."""

    check: str
    result: Result
    message: str
    advice: str = ""


def fine(check: str, message: str) -> Finding:
    """Return the finding that something works."""
    return Finding(check, Result.FINE, message)


def doubtful(check: str, message: str, advice: str) -> Finding:
    """Return the finding that something works, but not as it should."""
    return Finding(check, Result.DOUBTFUL, message, advice)


def wrong(check: str, message: str, advice: str) -> Finding:
    """Return the finding that something does not work."""
    return Finding(check, Result.WRONG, message, advice)


async def check_redis(redis: Redis, *, timeout: float) -> list[Finding]:  # noqa: ASYNC109 - of each wait, not of all
    """Check how Redis is reached and configured. ``timeout`` bounds the waits, in seconds."""
    try:
        health = await examine(redis, timeout=timeout)
    except RedisUnreachable as error:
        if _lacks_a_right(error):
            return [wrong("redis", "Redis refuses to let the user of REDIS_URL choose its database", _RIGHTS)]
        advice = "Check REDIS_URL, that Redis runs, and that this machine may connect to it."
        return [wrong("redis", f"Redis {error}", advice)]
    return [
        _version(health),
        _role(health),
        _eviction(health),
        _persistence(health),
        _round_trip(health),
        _permissions(health),
        _clock(health),
    ]


def _lacks_a_right(error: BaseException | None) -> bool:
    """Return whether a missing right is among the causes: the library wraps errors of the connection."""
    while error and not isinstance(error, NoPermissionError):
        error = error.__cause__ or error.__context__
    return error is not None


def _version(health: RedisHealth) -> Finding:
    if health.version is None:
        return doubtful(
            "redis",
            "reached; its user may not ask for its version (INFO)",
            "Allow INFO, or check the version yourself.",
        )
    if health.version < _OLDEST_REDIS:
        return wrong("redis", f"{health.name} is too old", "Use Redis 7 or newer, or Valkey.")
    return fine("redis", f"{health.name} is reached")


def _role(health: RedisHealth) -> Finding:
    if health.is_replica:
        return wrong("redis role", "it is a replica, which takes no writes", "Let REDIS_URL name the primary.")
    if health.is_replica is None:
        return doubtful("redis role", "unknown", "Make sure that REDIS_URL names the primary.")
    return fine("redis role", "takes writes")


def _eviction(health: RedisHealth) -> Finding:
    if health.eviction is None:
        return doubtful("redis eviction", "unknown", "Make sure that maxmemory-policy is noeviction.")
    if health.eviction != "noeviction":
        message = f"maxmemory-policy is {health.eviction}: when memory is full, limits and codes are forgotten"
        return wrong("redis eviction", message, "Set maxmemory-policy noeviction.")
    return fine("redis eviction", "maxmemory-policy is noeviction")


def _persistence(health: RedisHealth) -> Finding:
    advice = "Set appendonly yes, or save, unless that is meant."
    if health.persistence is None:
        return doubtful("redis persistence", "unknown", "Make sure that appendonly, or save, is on.")
    if not health.persistence:
        message = "off: with a restart of Redis pending codes, limits and undelivered events are lost"
        return doubtful("redis persistence", message, advice)
    return fine("redis persistence", f"on ({', '.join(health.persistence)})")


def _round_trip(health: RedisHealth) -> Finding:
    milliseconds = f"{health.round_trip / timedelta(milliseconds=1):.2f} ms"
    if health.round_trip > _SLOW:
        return doubtful("redis round trip", milliseconds, "Bring Redis closer: every request waits for it.")
    return fine("redis round trip", milliseconds)


def _permissions(health: RedisHealth) -> Finding:
    if health.refused:
        message = f"the user of REDIS_URL may not use: {'; '.join(health.refused)}"
        return wrong("redis permissions", message, _RIGHTS)
    return fine("redis permissions", "scripts run, and changes can be published")


def _clock(health: RedisHealth) -> Finding:
    seconds = health.ahead.total_seconds()
    message = f"Redis is {abs(seconds):.2f} s {'ahead of' if seconds > 0 else 'behind'} this machine"
    advice = "Have both keep time by NTP (chrony, systemd-timesyncd)."
    if abs(health.ahead) > _CLOCK_IS_WRONG:
        return wrong("clock", message, advice)
    return doubtful("clock", message, advice) if abs(health.ahead) > _CLOCK_DRIFTS else fine("clock", message)


async def check_provider(accounts: ProviderAccounts, *, minimum: Decimal, warning: Decimal) -> list[Finding]:
    """Check that the provider is reached and accepts the token, and that the balance pays for calls. Costs nothing."""
    try:
        found = await accounts.get_account()
    except ProviderRejected as error:
        advice = (
            "Check PLUSOFON_ACCESS_TOKEN, PLUSOFON_USER_ID and, if the account has two tokens, PLUSOFON_CABINET_TOKEN."
        )
        return [wrong("provider", f"reached, but it refuses the token: {error.message}", advice)]
    except ProviderError as error:
        return [_no_answer(error.__cause__)]
    names = ", ".join(account.name for account in found) or "no account by name"
    return [fine("provider", f"reached, and it takes the token ({names})"), await _balance(accounts, minimum, warning)]


def _no_answer(cause: BaseException | None) -> Finding:
    """Return how far a request to the provider got, by the network error that caused its failure."""
    match cause:
        case NeverSent():
            message, advice = _NOT_REACHED[cause.reason]
            detail = cause.detail or (cause.why if cause.reason is Reason.OTHER else "")
            return wrong("provider", f"not reached: {message}{f' ({detail})' if detail else ''}", advice)
        case Unclear(why="TimeoutError"):
            advice = "Try again later; a larger PLUSOFON_TIMEOUT_SECONDS helps where it is merely slow."
            return wrong("provider", "connected, but no answer came in time (PLUSOFON_TIMEOUT_SECONDS)", advice)
        case Unclear():
            advice = "Check that PLUSOFON_BASE_URL is that of Plusofon's API, and that no proxy answers in its place."
            return wrong("provider", f"connected, but its answer made no sense ({cause.why})", advice)
        case _:
            return wrong("provider", "reached, but it takes no requests now", "Try again later.")


async def _balance(accounts: ProviderAccounts, minimum: Decimal, warning: Decimal) -> Finding:
    try:
        rub = await accounts.get_balance()
    except ProviderError:
        advice = "Calls are placed all the same. A PLUSOFON_CABINET_TOKEN may be needed to read it."
        return doubtful("balance", "cannot be read", advice)
    top_up = "Top the account up in Plusofon's cabinet."
    if rub < minimum:
        return wrong("balance", f"{rub:.2f} RUB, below MIN_BALANCE_RUB ({minimum}): no call is placed", top_up)
    if rub < warning:
        return doubtful("balance", f"{rub:.2f} RUB, below WARN_BALANCE_RUB ({warning})", top_up)
    return fine("balance", f"{rub:.2f} RUB")


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Check what follows from valid settings and from this process."""
    yield fine("settings", f"complete, for {settings.mode} mode")
    if settings.plusofon.cabinet_token and settings.mode is Mode.PRODUCTION:
        message = "PLUSOFON_ACCESS_TOKEN cannot be tried here: the account is read with PLUSOFON_CABINET_TOKEN"
        yield doubtful("call token", message, "`plusofon-verify call` tries it, with a call.")
    message = "seen in requests alone: if a backend passes a private or loopback one, the log has client_ip.not_public"
    yield fine("client_ip", message)
    yield _https(settings)
    yield _tokens(settings)
    yield _files(settings, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def check_names() -> Iterator[Finding]:
    """Check that names in the environment that look like settings are settings."""
    for name, meant in misspelt_settings().items():
        advice = f"Write {meant}, if that is meant." if meant else "Look for its name in .env.example."
        yield doubtful("settings", f"{name} is no setting, and nothing reads it", advice)


def _https(settings: Settings) -> Finding:
    if settings.tls.cert_file:
        return fine("https", "by the service itself (TLS_CERT_FILE)")
    if settings.public_url and settings.public_url.startswith("https://"):
        return fine("https", "by a proxy, as PUBLIC_URL says")
    if settings.mode is Mode.SANDBOX:
        return fine("https", "not needed in sandbox mode")
    advice = "Put a proxy in front and set PUBLIC_URL=https://…, or set TLS_CERT_FILE and TLS_KEY_FILE."
    return doubtful(
        "https", "nothing says that callers come by HTTPS: codes, phones and API keys could be read", advice
    )


def _tokens(settings: Settings) -> Finding:
    try:
        signer = make_tokens(settings)
        token = signer.sign(phone=_MADE_UP, purpose="doctor", verification_id="doctor", client="doctor")
        signer.verify(token, client="doctor")
    except (ValueError, OSError, VerificationError):
        advice = "Make a new one with `plusofon-verify keygen`."
        return wrong("token keys", "a token that was signed with them does not verify", advice)
    return fine("token keys", "sign and verify")


def _files(settings: Settings, limit: int) -> Finding:
    needed = settings.events.listeners + settings.plusofon.max_connections + _OTHER_FILES
    message = f"{'unlimited' if limit == resource.RLIM_INFINITY else limit} here"
    if limit != resource.RLIM_INFINITY and limit < needed:
        advice = f"Allow {needed} (ulimit -n, LimitNOFILE=), or lower EVENTS_LISTENERS."
        return doubtful("open files", f"{message}; EVENTS_LISTENERS and calls may need {needed}", advice)
    return fine("open files", f"{message}, {needed} may be needed")
