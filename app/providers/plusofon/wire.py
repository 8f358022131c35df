"""What Plusofon's JSON means: the words it uses, the shapes of its failures, and what may be told of them.

Every fact carries its source: *brief* (asked for by the project's user), *docs* (help.plusofon.ru), *seen* (read in
several public clients) or *open* (nobody knows; it is handled so that a wrong guess costs no call and no money).

Each ``parse_…`` returns what was asked for, or raises ``ProviderError`` (it definitely was not done) or ``Unclear``.
"""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from http import HTTPStatus
from typing import Literal

from app.providers.answer import Answer, printable
from app.providers.http import Unclear
from app.verification.errors import BalanceTooLow, ProviderError, ProviderRejected, ProviderUnavailable
from app.verification.model import CallState, CallStatus, Placed, ProviderAccount
from app.verification.phone import Phone

PhonePrefix = Literal["8", "7"]

_LONGEST_NAME = 64  # of a status word or an account
_LONGEST_IDENTIFIER = 128
_LARGEST_EXPONENT = 12  # of a balance, either way: 1e999999999 is a fine Decimal and a gigabyte when written out

_FLASH_PIN = re.compile(r"[0-9]{4}")  # as a number it has no leading zero, and 42 may have been anything
_PUNCTUATION = re.compile(r"[\s().\-\u2010-\u2015\u2212]")
_RUSSIAN_NUMBER = re.compile(r"(?:\+?7|8)((?!80[39])[3489][0-9]{9})")

# The sandbox's words. Plusofon's own are open, so their spelling is read leniently, and any other word is kept.
_STATUS_WORDS = {
    "queued": CallStatus.INITIATED,
    "ringing": CallStatus.RINGING,
    "answered": CallStatus.ANSWERED,
    "completed": CallStatus.COMPLETED,
    "busy": CallStatus.BUSY,
    "no_answer": CallStatus.NO_ANSWER,
    "failed": CallStatus.FAILED,
}


def _message(answer: Answer) -> str:
    """Return the provider's own words, redacted: ``message`` (docs, seen), ``error`` or its ``message`` (seen)."""
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


def _told_to_wait(answer: Answer) -> ProviderError:
    return ProviderUnavailable(retry_after=answer.retry_after)


def _says_no_access(answer: Answer) -> bool:
    return "no access" in answer.text.lower() and not answer.text.lstrip().startswith("<")


# Open: no source shows the answer of an account without money. "Недостаточно прав" is the wrong kind of token (seen).
_NO_MONEY = re.compile(r"недостаточно\s+(средств|денег)|insufficient\s+(funds|balance)", re.IGNORECASE)

# The shapes of a refusal; the first that fits wins. A refusal gives the attempt back to the person who asked, so a
# shape needs a reason to be here. What is in no row is unclear: redirects, other 4xx and 5xx, HTML and empty bodies.
_REFUSALS: tuple[tuple[Callable[[Answer], bool], Callable[[Answer], ProviderError]], ...] = (
    # 429, whatever the body (open: taken in its standard sense, which comes with a time to wait).
    (lambda answer: answer.status == HTTPStatus.TOO_MANY_REQUESTS, _told_to_wait),
    # {"success": false, "code": 500, "message": "error find flashcall account: …"}, with status 200 or any (seen).
    (lambda answer: answer.fields.get("success") is False, _rejected),
    # {"jsonrpc": "2.0", "result": null, "error": {"code": 0, "message": "Page not found."}}: a wrong path (seen).
    (lambda answer: _message(answer).rstrip(".").lower() == "page not found", _rejected),
    # 400 bad parameter, 401 and 403 token, 404 not found (docs); 422 is what many frameworks say for 400 (open).
    (lambda answer: answer.status in {400, 401, 403, 404, 422}, _rejected),
    # 500 "no access" (docs, quoted without a body): JSON or text, but no page, which may hold the words by chance.
    (lambda answer: answer.status == HTTPStatus.INTERNAL_SERVER_ERROR and _says_no_access(answer), _rejected),
)


def _raise_refusal(answer: Answer) -> None:
    """Raise what the table says. ``success: true`` under a refusing status contradicts itself: no refusal."""
    if answer.fields.get("success") is True:
        return
    for fits, error in _REFUSALS:
        if fits(answer):
            raise error(answer)


def _require_success(answer: Answer) -> None:
    _raise_refusal(answer)
    if answer.status != HTTPStatus.OK or answer.fields.get("success") is not True:
        raise Unclear(f"HTTP {answer.status} without a verdict")


def _data(answer: Answer, name: str) -> object:
    """Return the field ``name`` of a success's ``data``, or none."""
    _require_success(answer)
    data = answer.fields.get("data")
    return data.get(name) if isinstance(data, dict) else None


def parse_placed_call(answer: Answer) -> str:
    """Return the ``call_id`` of ``{"success": true, "data": {"call_id": "…"}}`` (brief); an integer is written out."""
    call_id = _identifier(_data(answer, "call_id"))
    if call_id is None:
        raise Unclear("a success without a usable call_id")
    return call_id


def require_flash_pin(pin: str | None) -> None:
    """Return if a flash call can carry ``pin``: the last four digits of a number (docs).

    Raises:
        ProviderRejected: it cannot. Of a longer one the person would see only a part.

    """
    if pin is not None and not _FLASH_PIN.fullmatch(pin):
        raise ProviderRejected("not a code of four digits")


def parse_flash_call(answer: Answer) -> Placed:
    """Read ``{"success": true, "data": {"key": "…", "pin"?: "…", "operator"?: "…"}}`` (docs, seen).

    ``pin`` and ``operator`` come back only if the account is set so. A ``pin`` is the code that counts, whatever was
    asked for. One that is no code of four digits is unclear: the call was placed, with a code that nobody knows here.
    """
    key, pin = _identifier(_data(answer, "key")), _data(answer, "pin")
    if key is None:
        raise Unclear("a success without a usable key")
    if pin is None or pin == "":
        return Placed(key, operator=_operator(answer))
    code = _written(pin)
    if code is None or not _FLASH_PIN.fullmatch(code):
        raise Unclear("a success with a pin that is no code of four digits")
    return Placed(key, code=code, operator=_operator(answer))


def parse_reverse_call(answer: Answer) -> Placed:
    """Read ``{"success": true, "data": {"key": "…", "phone": "number to dial"}}`` (docs, seen).

    Raises:
        ProviderRejected: besides the usual, a success with nothing to dial, or without a key to tell the call by when
            it came in. A person can do nothing with that, nobody was called, and trying again might give the same.

    """
    key, number = _identifier(_data(answer, "key")), _dialable(_data(answer, "phone"))
    if key is None:
        raise ProviderRejected("a success without a usable key")
    if number is None:
        raise ProviderRejected("a success without a number that can be dialed")
    return Placed(key, dial=number)


def _operator(answer: Answer) -> str | None:
    """Return the name of the phone's operator, fit to be compared: its spelling is open."""
    name = _data(answer, "operator")
    words = printable(name).lower().split() if isinstance(name, str) else []
    return " ".join(words)[:_LONGEST_NAME].strip() or None


def _dialable(value: object) -> Phone | None:
    """Read a Russian number in any spelling (open), fixed lines and toll-free numbers included.

    Left out are premium numbers (803, 809) and Kazakhstan's (6, 7): a person is told to dial this one, and pays for it.
    """
    digits = _PUNCTUATION.sub("", _written(value) or "")
    match = _RUSSIAN_NUMBER.fullmatch(digits)
    return Phone(f"+7{match[1]}") if match else None


def parse_call_state(answer: Answer) -> CallState:
    """Read ``{"success": true, "data": {"status": "…"}}`` (brief).

    An unknown word means that the call is still under way (open); up to 64 characters of it are kept, redacted.
    """
    word = _data(answer, "status")
    kept = answer.redact(word).strip()[:_LONGEST_NAME] if isinstance(word, str) else ""
    if not kept:
        raise Unclear("a success without a status word")
    known = _STATUS_WORDS.get(kept.lower().replace("-", "_"))
    return CallState(known) if known else CallState(CallStatus.INITIATED, provider_status=kept)


def parse_accounts(answer: Answer) -> list[ProviderAccount]:
    """Read ``{"success": true, "data": [{"id": 7, "name": "…", "access_token": "…"}]}`` (docs), without the tokens.

    Entries without an id are left out.
    """
    _require_success(answer)
    entries = answer.fields.get("data")
    if not isinstance(entries, list):
        raise Unclear("a success without a list of accounts")
    accounts = map(_account, entries)
    return [account for account in accounts if account]


def _account(entry: object) -> ProviderAccount | None:
    if not isinstance(entry, dict):
        return None
    account_id, name = _identifier(entry.get("id")), entry.get("name")
    if account_id is None:
        return None
    return ProviderAccount(account_id, printable(name)[:_LONGEST_NAME] if isinstance(name, str) else "")


def parse_balance(answer: Answer) -> Decimal:
    """Read ``{"balance": 123.45}``, in RUB and without an envelope (seen); a number written as a string is accepted."""
    _raise_refusal(answer)
    balance = _amount(answer.fields.get("balance"))
    if answer.status != HTTPStatus.OK or balance is None:
        raise Unclear(f"HTTP {answer.status} without a balance")
    return balance


def _amount(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number.adjusted()) <= _LARGEST_EXPONENT else None


def _identifier(value: object) -> str | None:
    """Return a name given by the provider, if it is one that can be stored and sent back; it is opaque otherwise."""
    name = _written(value)
    usable = name and name.strip() and name.isprintable() and len(name) <= _LONGEST_IDENTIFIER
    return name if usable else None


def _written(value: object) -> str | None:
    """Return a string as it is and an integer written out: JSON's writers do not agree on which an identifier is."""
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def format_phone(phone: Phone, prefix: PhonePrefix) -> str:
    """Spell a number as Plusofon wants it: ``8XXXXXXXXXX`` (brief) or ``7XXXXXXXXXX`` (most public clients).

    Raises:
        ProviderRejected: it is not Russian. Never called in practice; without this it would become another number.

    """
    national = phone.e164.removeprefix("+7")
    if not re.fullmatch(r"[0-9]{10}", national):
        raise ProviderRejected("not a Russian number")
    return prefix + national
