"""The fields that every log event of a request, or of one step in the background, carries.

They belong to the task that calls ``begin``, and to the tasks that it makes: a write that is repeated later is logged
with the request that it belongs to.
"""

import re
from collections.abc import Mapping
from contextvars import ContextVar

_ID = re.compile(r"vrf_[0-9a-f]{23}")

_bound: ContextVar[dict[str, object]] = ContextVar("log_context")


def begin(**fields: object) -> None:
    """Begin a request or a step, whose events carry these fields and none of those bound before."""
    _bound.set(fields)


def bind(**fields: object) -> None:
    """Add fields to all further events of this request or step. Does nothing outside of one."""
    fields_of_all = _bound.get(None)
    if fields_of_all is not None:
        fields_of_all.update(fields)


def bind_verification(verification_id: str) -> None:
    """Bind an id that a caller sent, if it has the form of one: any other text could be a phone or a code."""
    if _ID.fullmatch(verification_id):
        bind(verification_id=verification_id)


def bound() -> Mapping[str, object]:
    """Return the fields of the present request or step."""
    return _bound.get(None) or {}
