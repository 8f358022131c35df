"""The JSON sent to a relay, and that of its answers; the protocol is this project's own, see ``docs/relay.md``.

Each ``parse_…`` raises ``ProviderError`` if the request definitely was not carried out, and ``Unclear`` if it may have.
"""

import json
import re
from http import HTTPStatus

from app.providers.answer import CALL_STATUSES, Answer, Refusals, raise_refusal, retry_later
from app.providers.http import Unclear
from app.verification.channels import Channel
from app.verification.errors import BalanceTooLow, ProviderError, ProviderRejected
from app.verification.model import CallState
from app.verification.ports import CallId, CallOrder

# Fits a path, a header and a signature as it is: no full stop, which Standard Webhooks forbids in an id that others
# choose, and so no ".." either.
CALL_REF = re.compile(r"[A-Za-z0-9_-]{1,128}")


def name_call(name: CallId, channel: Channel) -> str:
    """Return the relay's name of a call. The channel is part of it: a call that one refused may go by another."""
    return f"{name.verification_id}-{name.call_number}-{channel}"


def write_order(order: CallOrder, channel: Channel, call: str) -> bytes:
    """Return the body of the request that places a call, as it is sent and signed."""
    body = {
        "call": call,
        "channel": channel.value,
        "phone": order.phone.e164,
        "code": order.code,
        "lang": order.lang.value,
        "repeat": order.repeat,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def _rejected(answer: Answer) -> ProviderError:
    reason = answer.fields.get("reason")
    if reason == "balance_too_low":
        return BalanceTooLow()
    shown = answer.redact(reason) if isinstance(reason, str) else ""
    return ProviderRejected(shown or f"HTTP {answer.status}")


def _says_refused(answer: Answer) -> bool:
    return answer.fields.get("status") == "refused"


# In no row, so unclear: 401, 403, 404 and 5xx without "refused", redirects, HTML, empty bodies, a success under the
# status of a failure. A proxy in between may have written those, before the relay saw the request or after.
_REFUSALS: Refusals = (
    # 429, whatever the body: a rate is limited before anything is done, by a proxy too.
    (lambda answer: answer.status == HTTPStatus.TOO_MANY_REQUESTS, retry_later),
    # 503 with {"status": "refused"}: the relay is there and cannot now. Without "refused" it may be a proxy that
    # lost the relay half-way, so it is unclear, with Retry-After or not.
    (lambda answer: answer.status == HTTPStatus.SERVICE_UNAVAILABLE and _says_refused(answer), retry_later),
    # {"status": "refused", "reason": "…"} under 200 or any 4xx; the reason "balance_too_low" has a meaning of its own.
    (lambda answer: _says_refused(answer) and answer.status in (HTTPStatus.OK, *range(400, 500)), _rejected),
)


def parse_placed(answer: Answer, *, call: str) -> str:
    """Return the name by which the call is looked up: the relay's own if it gave a usable one, else ``call``.

    Placed is ``{"status": "accepted"}`` or ``"placed"`` under 200, 201 or 202, with ``"call"`` or without.
    """
    if answer.fields.get("status") in ("accepted", "placed"):
        if answer.status not in {HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED}:
            raise Unclear(f"HTTP {answer.status} with the status of a success")
        ref = answer.fields.get("call")
        return ref if isinstance(ref, str) and CALL_REF.fullmatch(ref) else call
    raise_refusal(answer, _REFUSALS)
    raise Unclear(f"HTTP {answer.status} without a verdict")


def parse_state(answer: Answer) -> CallState | None:
    """Read ``{"status": "ringing"}``; none for 404 with ``{"error": "unknown_call"}``: it was never placed.

    A 404 alone is a wrong path or a proxy, and proves nothing. An unknown status is not kept: it may be the code.
    """
    status = answer.fields.get("status")
    if answer.status == HTTPStatus.OK and isinstance(status, str) and status in CALL_STATUSES:
        return CallState(CALL_STATUSES[status])
    if answer.status == HTTPStatus.NOT_FOUND and answer.fields.get("error") == "unknown_call":
        return None
    if answer.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        raise retry_later(answer)
    raise Unclear(f"HTTP {answer.status} without a state")
