"""The kinds of provider errors, as metrics and statistics count them."""

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
    """Return the kind of an error: one of ``REFUSAL_KINDS``."""
    return next((kind for error_type, kind in _KINDS.items() if isinstance(error, error_type)), _OTHER)
