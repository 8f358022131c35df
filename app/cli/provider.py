"""The check of ``doctor`` on the provider: how far a request gets, and whether the balance pays for calls."""

from decimal import Decimal

from app.cli.checks import Finding, doubtful, fine, wrong
from app.providers.http import NeverSent, Reason, Unclear
from app.verification.errors import ProviderError, ProviderRejected
from app.verification.ports import ProviderAccounts

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
