"""The kinds of a provider's refusal: few words, for whoever counts them."""

from collections.abc import Mapping

from app.verification.errors import BalanceTooLow, ProviderError, ProviderRejected, ProviderUnavailable

_KINDS: Mapping[type[ProviderError], str] = {
    ProviderRejected: "rejected",
    ProviderUnavailable: "unavailable",
    BalanceTooLow: "balance_too_low",
}
_OTHER = "other"

REFUSAL_KINDS = (*_KINDS.values(), _OTHER)


def refusal_kind(error: ProviderError) -> str:
    """Name the kind of a refusal: one of ``REFUSAL_KINDS``."""
    return next((word for kind, word in _KINDS.items() if isinstance(error, kind)), _OTHER)
