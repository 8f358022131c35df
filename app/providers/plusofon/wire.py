"""Plusofon's JSON: its successes, the shapes of its refusals, and the format of phones.

Every fact carries its source: *brief* (asked for by the project's user), *docs* (help.plusofon.ru), *seen* (read in
several public clients) or *open* (not known; it is handled so that a wrong guess costs no call and no money).

Each ``parse_…`` raises ``ProviderError`` if the request definitely was not carried out, and ``Unclear`` if it may have.
"""

import re
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from http import HTTPStatus
from typing import Literal

from app.providers.answer import CALL_STATUSES, Answer, Refusals, printable, raise_refusal, retry_later
from app.providers.http import Unclear
from app.verification.errors import BalanceTooLow, ProviderError, ProviderRejected
from app.verification.model import CallState, CallStatus, Placed, ProviderAccount
from app.verification.phone import Phone

PhonePrefix = Literal["8", "7"]

_LONGEST_NAME = 64  # of a status, an account or an operator
_LONGEST_IDENTIFIER = 128
_LARGEST_EXPONENT = 12  # of a balance, either way: 1e999999999 is a fine Decimal and a gigabyte when written out

FLASH_PIN = re.compile(r"[0-9]{4}")  # the last digits of a number (docs)
_PUNCTUATION = re.compile(r"[\s().\-\u2010-\u2015\u2212]")
_RUSSIAN_NUMBER = re.compile(r"(?:\+?7|8)((?!80[39])[3489][0-9]{9})")


def _message(answer: Answer) -> str:
    """Return the provider's message, redacted: ``message`` (docs, seen), or ``error`` or its ``message`` (seen)."""
    error = answer.fields.get("error")
    nested = error.get("message") if isinstance(error, dict) else error
    return answer.redact(_flat(answer.fields.get("message") or nested))


def _flat(value: object, depth: int = 3) -> str:
    """Write any JSON value as one line; validation errors come as lists by field in many APIs (open in this one)."""
    match value:
        case None:
            return ""
        case dict() if depth:
            return ", ".join(f"{key}: {_flat(item, depth - 1)}" for key, item in value.items())
        case list() if depth:
            return ", ".join(_flat(item, depth - 1) for item in value)
        case dict() | list():
            return "…"
        case _:
            return str(value)


def _rejected(answer: Answer) -> ProviderError:
    message = _message(answer)
    if _NO_MONEY.search(message):
        return BalanceTooLow()
    return ProviderRejected(message or f"HTTP {answer.status}")


def _says_no_access(answer: Answer) -> bool:
    return "no access" in answer.text.lower() and not answer.text.lstrip().startswith("<")


# Open: no source shows the answer of an account without money. "Недостаточно прав" is the wrong kind of token (seen).
_NO_MONEY = re.compile(r"недостаточно\s+(средств|денег)|insufficient\s+(funds|balance)", re.IGNORECASE)

# In no row, so unclear: redirects, other 4xx and 5xx, HTML and empty bodies.
_REFUSALS: Refusals = (
    # 429, whatever the body (open: taken in its standard sense, which comes with a time to wait).
    (lambda answer: answer.status == HTTPStatus.TOO_MANY_REQUESTS, retry_later),
    # {"success": false, "code": 500, "message": "error find flashcall account: …"}, with status 200 or any (seen).
    (lambda answer: answer.fields.get("success") is False, _rejected),
    # {"jsonrpc": "2.0", "result": null, "error": {"code": 0, "message": "Page not found."}}: a wrong path (seen).
    (lambda answer: _message(answer).rstrip(".").lower() == "page not found", _rejected),
    # 400 bad parameter, 401 and 403 token, 404 not found (docs); 422 is what many frameworks say for 400 (open).
    (lambda answer: answer.status in {400, 401, 403, 404, 422}, _rejected),
    # 500 "no access" (docs, quoted without a body): JSON or text; an HTML page may hold the words by chance.
    (lambda answer: answer.status == HTTPStatus.INTERNAL_SERVER_ERROR and _says_no_access(answer), _rejected),
)


def _require_success(answer: Answer) -> None:
    """Return if the answer is a success: only JSON ``true`` is (seen), neither ``1`` nor ``"true"``.

    Under a refusing status ``success: true`` contradicts itself, and so is unclear.
    """
    is_success = answer.fields.get("success") is True
    if not is_success:
        raise_refusal(answer, _REFUSALS)
    if answer.status != HTTPStatus.OK or not is_success:
        raise Unclear(f"HTTP {answer.status} without a verdict")


def _data(answer: Answer, name: str) -> object:
    """Return the field ``name`` of a success's ``data``, or none."""
    _require_success(answer)
    data = answer.fields.get("data")
    return data.get(name) if isinstance(data, dict) else None


def parse_placed_call(answer: Answer) -> Placed:
    """Read ``{"success": true, "data": {"call_id": "…"}}`` (brief)."""
    call_id = _identifier(_data(answer, "call_id"))
    if call_id is None:
        raise Unclear("a success without a usable call_id")
    return Placed(call_id)


def parse_flash_call(answer: Answer) -> Placed:
    """Read ``{"success": true, "data": {"key": "…", "pin"?: "…", "operator"?: "…"}}`` (docs, seen).

    ``pin`` and ``operator`` come back only if the account is set so. A ``pin`` is the code that counts, whatever was
    sent. One that is not four digits is unclear: the call was placed, with a code that is not known here.
    """
    key, pin = _identifier(_data(answer, "key")), _data(answer, "pin")
    if key is None:
        raise Unclear("a success without a usable key")
    if pin is None or pin == "":
        return Placed(key, operator=_operator(answer))
    code = _written(pin)
    if code is None or not FLASH_PIN.fullmatch(code):
        raise Unclear("a success with a pin that is not four digits")
    return Placed(key, code=code, operator=_operator(answer))


def parse_reverse_call(answer: Answer) -> Placed:
    """Read ``{"success": true, "data": {"key": "…", "phone": "number to dial"}}`` (docs, seen).

    A success without a number to dial, or without a key that identifies the call when it comes in, is a refusal: it is
    of no use, and no call was placed.
    """
    key, number = _identifier(_data(answer, "key")), _dialable(_data(answer, "phone"))
    if key is None:
        raise ProviderRejected("a success without a usable key")
    if number is None:
        raise ProviderRejected("a success without a number that can be dialed")
    return Placed(key, dial=number)


def _operator(answer: Answer) -> str | None:
    """Return the phone's operator in lower case; its spelling is open."""
    name = _data(answer, "operator")
    words = printable(name).lower().split() if isinstance(name, str) else []
    return " ".join(words)[:_LONGEST_NAME].strip() or None


def _dialable(value: object) -> Phone | None:
    """Read a Russian number in any spelling (open), fixed lines and toll-free numbers included.

    Premium numbers (803, 809) and Kazakhstan's (6, 7) are left out: the person who dials the number pays for it.
    """
    digits = _PUNCTUATION.sub("", _written(value) or "")
    match = _RUSSIAN_NUMBER.fullmatch(digits)
    return Phone(f"+7{match[1]}") if match else None


def parse_call_state(answer: Answer) -> CallState:
    """Read ``{"success": true, "data": {"status": "…"}}`` (brief); the values are open, so they are read leniently.

    An unknown status means that the call is still under way (open); up to 64 characters of it are kept, redacted.
    """
    status = _data(answer, "status")
    shown = answer.redact(status).strip()[:_LONGEST_NAME] if isinstance(status, str) else ""
    if not shown:
        raise Unclear("a success without a status")
    known = CALL_STATUSES.get(shown.lower().replace("-", "_"))
    return CallState(known) if known else CallState(CallStatus.INITIATED, provider_status=shown)


def parse_accounts(answer: Answer) -> list[ProviderAccount]:
    """Read ``{"success": true, "data": [{"id": 7, "name": "…", "access_token": "…"}]}`` (docs), without the tokens.

    Entries without an id are left out.
    """
    _require_success(answer)
    entries = answer.fields.get("data")
    if not isinstance(entries, list):
        raise Unclear("a success without a list of accounts")
    accounts = []
    for entry in entries:
        account_id = _identifier(entry.get("id")) if isinstance(entry, dict) else None
        if account_id is not None:
            name = entry.get("name")
            shown = printable(name)[:_LONGEST_NAME] if isinstance(name, str) else ""
            accounts.append(ProviderAccount(account_id, shown))
    return accounts


def parse_balance(answer: Answer) -> Decimal:
    """Read ``{"balance": 123.45}``, in RUB and without an envelope (seen); a number written as a string is accepted."""
    if answer.fields.get("success") is not True:
        raise_refusal(answer, _REFUSALS)
    value = answer.fields.get("balance")
    if answer.status == HTTPStatus.OK and isinstance(value, (str, int, Decimal)) and not isinstance(value, bool):
        with suppress(InvalidOperation):
            balance = Decimal(value)
            if balance.is_finite() and abs(balance.adjusted()) <= _LARGEST_EXPONENT:
                return balance
    raise Unclear(f"HTTP {answer.status} without a balance")


def _identifier(value: object) -> str | None:
    """Return an identifier of the provider, opaque here, if it can be stored and sent back."""
    name = _written(value)
    usable = name and name.strip() and name.isprintable() and len(name) <= _LONGEST_IDENTIFIER
    return name if usable else None


def _written(value: object) -> str | None:
    """Return a string, or an integer as a string: an identifier may be either."""
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def format_phone(phone: Phone, prefix: PhonePrefix) -> str:
    """Return a number as ``8XXXXXXXXXX`` (brief) or ``7XXXXXXXXXX`` (most public clients).

    Raise ProviderRejected if it is not Russian, which the domain rules out: it would become another number.
    """
    national = phone.e164.removeprefix("+7")
    if not re.fullmatch(r"[0-9]{10}", national):
        raise ProviderRejected("not a Russian number")
    return prefix + national
