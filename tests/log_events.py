"""The log events that docs/monitoring.md lists."""

import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs/monitoring.md"
LOGS = DOCS.read_text(encoding="utf-8").partition("\n## Logs\n")[2].partition("\n## ")[0]
_COMMON, _, _EVENTS = LOGS.partition("\n### Fields of every event\n")[2].partition("\n### ")

COMMON_FIELDS = frozenset(
    field for row in re.findall(r"^\| (`[^|]*) \|", _COMMON, re.MULTILINE) for field in re.findall(r"`(\w+)`", row)
)


def documented() -> Mapping[str, frozenset[str]]:
    """Return the fields of each event of its own."""
    found: dict[str, frozenset[str]] = {}
    for events, fields in re.findall(r"^\| (`[^|]*) \|[^|]*\|([^|]*)\|", _EVENTS, re.MULTILINE):
        for event in re.findall(r"`([a-z_]+\.[a-z_]+)`", events):
            assert event not in found, event
            found[event] = frozenset(re.findall(r"`(\w+)`", fields))
    return found
