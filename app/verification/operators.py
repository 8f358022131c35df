"""The operator that a range of phone numbers is assigned to, by the Russian numbering plan."""

from collections.abc import Mapping

from phonenumbers.carrierdata import CARRIER_DATA

from app.verification.phone import Phone

UNKNOWN = "unknown"  # in statistics and in the journal

# The prefixes of MTS, which phonenumbers does not name.
_MTS = tuple(f"+7{prefix}" for prefix in (*range(910, 920), *range(980, 990)))
# A table of our own: the library parses a number and takes 20 µs, and each call is counted by its operator.
_OPERATORS: Mapping[str, str] = dict.fromkeys(_MTS, "mts") | {
    f"+{prefix}": names["en"].lower()
    for prefix, names in CARRIER_DATA.items()
    if prefix.startswith("79") and "en" in names and not f"+{prefix}".startswith(_MTS)
}
_LENGTHS = sorted(set(map(len, _OPERATORS)), reverse=True)  # the longest prefix counts


def operator_of(phone: Phone) -> str | None:
    """Return the operator that a number range is assigned to: ``mts``, ``beeline``, ``megafon``, ``t2`` or another.

    Numbers are portable, so the subscriber may have moved: what the provider reports takes precedence.
    """
    for length in _LENGTHS:
        if operator := _OPERATORS.get(phone.e164[:length]):
            return operator
    return None
