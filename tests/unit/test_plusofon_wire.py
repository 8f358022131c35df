"""Parsing Plusofon's responses: every known shape, arbitrary input, and redaction of secrets."""

import json
import re
from decimal import Decimal

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.providers.answer import DEFAULT_RETRY_AFTER, Answer, Redactor, read_answer
from app.providers.http import Unclear
from app.providers.plusofon import wire
from app.providers.plusofon.client import PlusofonClient
from app.verification.errors import BalanceTooLow, ProviderError, ProviderRejected, ProviderUnavailable
from app.verification.model import CallState, CallStatus, Lang, Placed, ProviderAccount, Refused, Unknown
from app.verification.phone import Phone
from tests.provider_options import http_options

TOKEN = "not-a-real-token"
CABINET_TOKEN = "not-a-real-cabinet-token"
USER_ID = "10553-made-up"
PIN = "042137"
PHONE = Phone("+79001234567")

PAGE_NOT_FOUND = {"jsonrpc": "2.0", "result": None, "error": {"code": 0, "message": "Page not found."}}


def answer(body: object, status: int = 200, retry_after: str | None = None) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(status, raw, retry_after=retry_after, redact=Redactor([TOKEN, CABINET_TOKEN, USER_ID]))


def refusal(body: object, status: int = 200, retry_after: str | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        wire.parse_placed_call(answer(body, status, retry_after))
    return caught.value


class TestPlacedCall:
    @pytest.mark.parametrize(
        ("call_id", "expected"),
        [("abc-1", "abc-1"), (17, "17"), ("x" * 128, "x" * 128)],
    )
    def test_a_success_with_a_call_id_is_a_placed_call(self, call_id: object, expected: str) -> None:
        assert wire.parse_placed_call(answer({"success": True, "data": {"call_id": call_id}})) == Placed(expected)

    def test_a_byte_order_mark_is_ignored(self) -> None:
        body = b"\xef\xbb\xbf" + b'{"success": true, "data": {"call_id": "abc"}}'
        assert wire.parse_placed_call(answer(body)) == Placed("abc")

    @pytest.mark.parametrize(
        "data",
        [
            *({"call_id": bad} for bad in (None, "", "  ", True, 1.5, ["x"], "a\nb", "\ud800", "x" * 129, 10**200)),
            {},
            None,
            [],
            "abc",
        ],
    )
    def test_a_success_without_a_usable_call_id_is_unclear(self, data: object) -> None:
        with pytest.raises(Unclear):
            wire.parse_placed_call(answer({"success": True, "data": data}))

    @pytest.mark.parametrize("status", [201, 202, 204, 302, 400, 401, 404, 429, 500, 502])
    def test_a_success_body_with_another_http_status_is_unclear(self, status: int) -> None:
        with pytest.raises(Unclear):
            wire.parse_placed_call(answer({"success": True, "data": {"call_id": "abc"}}, status))

    @pytest.mark.parametrize("truthy", [1, "true", "True", "ok", [1], None])
    def test_only_the_json_value_true_means_success(self, truthy: object) -> None:
        with pytest.raises(Unclear):
            wire.parse_placed_call(answer({"success": truthy, "data": {"call_id": "abc"}}))

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html><body>OK</body></html>",
            b"null",
            b"true",
            b'"success"',
            b"[]",
            b"{}",
            b'{"success": true, "data": {"call_id": "abc"}',
            b'{"success": true, "data": {"call_id": "abc"}, "price": NaN}',
            b'{"success": true, "data": {"call_id": "abc"}, "price": 1e99999999999999999999}',
            b'{"success": true, "data": {"call_id": ' + b"[" * 30_000,
            b"\xff\xfe\x00\x80",
            b'{"jsonrpc": "2.0", "error": {"code": -32603, "message": "Internal error"}}',
        ],
        ids=lambda body: repr(body[:80]),
    )
    def test_an_unreadable_response_is_unclear(self, body: bytes) -> None:
        with pytest.raises(Unclear):
            wire.parse_placed_call(answer(body))


class TestRefusals:
    @pytest.mark.parametrize("status", [200, 400, 403, 500, 503])
    def test_success_false_is_a_refusal_with_any_http_status(self, status: int) -> None:
        error = refusal({"success": False, "code": 500, "message": "error find flashcall account: x"}, status)
        assert isinstance(error, ProviderRejected)
        assert error.message == "error find flashcall account: x"

    @pytest.mark.parametrize("status", [200, 404, 500])
    def test_page_not_found_is_a_refusal(self, status: int) -> None:
        error = refusal(PAGE_NOT_FOUND, status)
        assert isinstance(error, ProviderRejected)
        assert error.message == "Page not found."

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
    @pytest.mark.parametrize("body", [b"", b"<html>no</html>", {}])
    def test_a_4xx_status_is_a_refusal_with_any_body(self, status: int, body: object) -> None:
        error = refusal(body, status)
        assert isinstance(error, ProviderRejected)
        assert error.message == f"HTTP {status}"

    @pytest.mark.parametrize(
        "body", [{"message": "No access"}, {"error": "no access"}, b"no access", {"x": "no access"}]
    )
    def test_status_500_with_no_access_is_a_refusal(self, body: object) -> None:
        assert isinstance(refusal(body, 500), ProviderRejected)

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (500, b""),
            (500, {"message": "Server Error"}),
            (500, b"<html>There is no access to the backend</html>"),
            (502, b"no access"),
            (200, b"no access"),
            (503, {}),
            (301, b""),
            (302, b""),
            (408, b""),
            (409, b""),
        ],
    )
    def test_other_failures_are_unclear(self, status: int, body: object) -> None:
        with pytest.raises(Unclear, match=str(status)):
            wire.parse_placed_call(answer(body, status))

    @pytest.mark.parametrize(
        "message",
        ["Недостаточно средств на балансе", "НЕДОСТАТОЧНО  СРЕДСТВ", "Insufficient funds", "недостаточно денег"],
    )
    @pytest.mark.parametrize("status", [200, 400])
    def test_a_message_about_insufficient_funds_is_balance_too_low(self, message: str, status: int) -> None:
        assert isinstance(refusal({"success": False, "message": message}, status), BalanceTooLow)

    def test_insufficient_rights_are_a_refusal_and_not_balance_too_low(self) -> None:
        assert isinstance(refusal({"message": "Недостаточно прав"}, 403), ProviderRejected)

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [("1", 1), ("120", 120), ("3600", 3600)]
        + [(bad, DEFAULT_RETRY_AFTER) for bad in (None, "0", "-5", "3601", "1e3", "٣", "99999999999", "soon", "")],
    )
    @pytest.mark.parametrize("body", [b"", {"success": False, "message": "Too many requests"}])
    def test_status_429_has_a_bounded_retry_after(self, body: object, header: str | None, seconds: int) -> None:
        error = refusal(body, 429, header)
        assert isinstance(error, ProviderUnavailable)
        assert error.retry_after == seconds

    @pytest.mark.parametrize(
        ("message", "shown"),
        [
            ("bad\x00 phone\u200b\r\nnumber", "bad phone  number"),
            ("\ud800broken", "broken"),
            ("x" * 500, "x" * 200),
            (42, "42"),
            (["one", "two"], "one, two"),
            ({"phone": ["is required"], "pin": None}, "phone: is required, pin:"),
            ([[[["deep"]]]], "…"),
            (None, "HTTP 200"),
            ("", "HTTP 200"),
            (True, "True"),
        ],
    )
    def test_a_message_of_any_shape_becomes_one_short_line(self, message: object, shown: str) -> None:
        error = refusal({"success": False, "message": message})
        assert isinstance(error, ProviderRejected)
        assert error.message == shown


class TestFlashCall:
    @pytest.mark.parametrize(
        ("data", "placed"),
        [
            ({"key": "abc"}, Placed("abc")),
            ({"key": 17}, Placed("17")),
            ({"key": "abc", "pin": None}, Placed("abc")),
            ({"key": "abc", "pin": ""}, Placed("abc")),
            ({"key": "abc", "pin": "0042"}, Placed("abc", code="0042")),
            ({"key": "abc", "pin": 4200}, Placed("abc", code="4200")),
            ({"key": "abc", "pin": "1234", "operator": "MTS"}, Placed("abc", code="1234", operator="mts")),
        ],
        ids=repr,
    )
    def test_a_success_with_a_key_is_a_placed_call(self, data: object, placed: Placed) -> None:
        assert wire.parse_flash_call(answer({"success": True, "data": data})) == placed

    @pytest.mark.parametrize(
        "pin",
        ["123", "12345", "12 34", "abcd", "\u0661\u0662\u0663\u0664", "1234\n", 42, 12345, -123, 1234.5, True, [1234]],
        ids=repr,
    )
    def test_a_pin_that_is_not_four_digits_is_unclear(self, pin: object) -> None:
        with pytest.raises(Unclear) as caught:
            wire.parse_flash_call(answer({"success": True, "data": {"key": "abc", "pin": pin}}))
        assert not re.search(r"\d", caught.value.why)

    @pytest.mark.parametrize(
        "data", [None, [], {}, {"key": None}, {"key": ""}, {"key": True}, {"call_id": "abc"}], ids=repr
    )
    def test_a_success_without_a_usable_key_is_unclear(self, data: object) -> None:
        with pytest.raises(Unclear):
            wire.parse_flash_call(answer({"success": True, "data": data}))

    @pytest.mark.parametrize(
        ("operator", "shown"),
        [
            ("MTS", "mts"),
            (" Мегафон\n", "мегафон"),
            ("T\x00e\u200ble2  RUS", "tele2 rus"),
            ("x" * 100, "x" * 64),
            ("\u0130" * 64, "i\u0307" * 32),
            ("", None),
            (" \u200b", None),
            (None, None),
            (25001, None),
            ({"name": "mts"}, None),
        ],
        ids=repr,
    )
    def test_an_operator_name_is_normalized(self, operator: object, shown: str | None) -> None:
        placed = wire.parse_flash_call(answer({"success": True, "data": {"key": "abc", "operator": operator}}))
        assert placed.operator == shown


class TestReverseCall:
    @pytest.mark.parametrize(
        ("spelled", "dial"),
        [
            ("88005553535", "+78005553535"),
            ("78005553535", "+78005553535"),
            ("+78005553535", "+78005553535"),
            (78005553535, "+78005553535"),
            ("8 (495) 123-45-67", "+74951234567"),
            ("+7\u00a0495\u2013123.45.67", "+74951234567"),
            ("79001234567", "+79001234567"),
            ("8 804 333 00 00", "+78043330000"),
        ],
        ids=repr,
    )
    def test_the_number_to_dial_is_read_in_any_spelling_and_of_any_number_type(
        self, spelled: object, dial: str
    ) -> None:
        placed = wire.parse_reverse_call(answer({"success": True, "data": {"key": "abc", "phone": spelled}}))
        assert placed == Placed("abc", dial=Phone(dial))

    @pytest.mark.parametrize(
        "phone",
        [
            *(None, "", "112", "0", True, 7.5, ["88005553535"], "8800555353", "880055535355", "call me"),
            *("+88005553535", "+442079460000", "++78005553535", "7+8005553535", "\u0668\u0668005553535"),
            *("88005553535,9", "8 800 555 35 35 #1", "88005553535;ext=1"),
            *("88091234567", "+78031234567"),  # premium
            *("87011234567", "+76001234567"),  # Kazakhstan
        ],
        ids=repr,
    )
    def test_a_premium_foreign_or_invalid_number_to_dial_is_a_refusal(self, phone: object) -> None:
        with pytest.raises(ProviderRejected) as caught:
            wire.parse_reverse_call(answer({"success": True, "data": {"key": "abc", "phone": phone}}))
        assert not re.search(r"\d", caught.value.message)

    @pytest.mark.parametrize("key", [None, "", True, "a\nb", "x" * 129], ids=repr)
    def test_a_reverse_call_without_a_usable_key_is_a_refusal(self, key: object) -> None:
        with pytest.raises(ProviderRejected):
            wire.parse_reverse_call(answer({"success": True, "data": {"key": key, "phone": "88005553535"}}))

    def test_a_response_without_success_is_unclear(self) -> None:
        with pytest.raises(Unclear):
            wire.parse_reverse_call(answer({"data": {"key": "abc", "phone": "88005553535"}}))


class TestCallState:
    @pytest.mark.parametrize(
        ("word", "status"),
        [
            ("queued", CallStatus.INITIATED),
            ("ringing", CallStatus.RINGING),
            ("answered", CallStatus.ANSWERED),
            ("completed", CallStatus.COMPLETED),
            ("busy", CallStatus.BUSY),
            ("no_answer", CallStatus.NO_ANSWER),
            ("failed", CallStatus.FAILED),
            ("No-Answer", CallStatus.NO_ANSWER),
            (" BUSY\n", CallStatus.BUSY),
        ],
    )
    def test_a_known_status_word_is_mapped_to_a_call_status(self, word: str, status: CallStatus) -> None:
        state = wire.parse_call_state(answer({"success": True, "data": {"status": word, "message": "…"}}))
        assert state == CallState(status)

    @pytest.mark.parametrize(
        ("word", "kept"),
        [("Transferred", "Transferred"), ("a\x00b\u200bc", "abc"), ("ждём", "ждём"), ("w" * 99, "w" * 64)],
    )
    def test_an_unknown_status_word_is_kept_and_means_in_progress(self, word: str, kept: str) -> None:
        state = wire.parse_call_state(answer({"success": True, "data": {"status": word}}))
        assert state == CallState(CallStatus.INITIATED, provider_status=kept)

    @pytest.mark.parametrize(
        "data", [{}, {"status": None}, {"status": 7}, {"status": ""}, {"status": "\x00"}, [], None]
    )
    def test_a_response_without_a_status_word_is_unclear(self, data: object) -> None:
        with pytest.raises(Unclear):
            wire.parse_call_state(answer({"success": True, "data": data}))


class TestAccounts:
    def test_accounts_are_read_without_their_tokens(self) -> None:
        body = {"success": True, "data": [{"id": 7, "name": "Main", "access_token": TOKEN}, {"id": "b", "name": None}]}
        accounts = wire.parse_accounts(answer(body))
        assert accounts == [ProviderAccount("7", "Main"), ProviderAccount("b", "")]
        assert TOKEN not in repr(accounts)
        assert TOKEN not in repr(answer(body))

    def test_malformed_accounts_are_left_out(self) -> None:
        odd: list[object] = [None, 5, "x", [], {}, {"id": None}, {"id": True}, {"id": {}}, {"name": "nameless"}]
        assert wire.parse_accounts(answer({"success": True, "data": [*odd, {"id": 1}]})) == [ProviderAccount("1", "")]

    @pytest.mark.parametrize("data", [None, {}, {"id": 1}, "x", 7])
    def test_anything_but_a_list_of_accounts_is_unclear(self, data: object) -> None:
        with pytest.raises(Unclear):
            wire.parse_accounts(answer({"success": True, "data": data}))


class TestBalance:
    @pytest.mark.parametrize(
        ("text", "rub"),
        [("123.45", "123.45"), ("0", "0"), ("-7", "-7"), ('"9.90"', "9.90"), ("0.1", "0.1"), ("1e2", "100")],
    )
    def test_a_balance_is_read_as_an_exact_decimal(self, text: str, rub: str) -> None:
        assert wire.parse_balance(answer(f'{{"balance": {text}}}'.encode())) == Decimal(rub)

    @pytest.mark.parametrize(
        "text",
        [
            *("NaN", "Infinity", '"NaN"', '"sNaN"', '"-Infinity"', '"ten"', '""', "true", "null", "[]", "{}"),
            *("1e999999999", "1e-999999999", "0e-999999999", "1e99999999999999999999"),
        ],
    )
    def test_a_balance_that_is_not_a_finite_number_is_unclear(self, text: str) -> None:
        with pytest.raises(Unclear):
            wire.parse_balance(answer(f'{{"balance": {text}}}'.encode()))

    @pytest.mark.parametrize(("status", "body"), [(200, b""), (200, b"123.45"), (200, {}), (502, {"balance": 1})])
    def test_a_response_without_a_balance_is_unclear(self, status: int, body: object) -> None:
        with pytest.raises(Unclear):
            wire.parse_balance(answer(body, status))

    def test_a_refused_balance_request_raises_provider_rejected(self) -> None:
        with pytest.raises(ProviderRejected, match="Недостаточно прав"):
            wire.parse_balance(answer({"success": False, "message": "Недостаточно прав", "balance": 5}))


class TestPhoneFormat:
    def test_the_prefix_replaces_the_country_code(self) -> None:
        assert wire.format_phone(PHONE, "8") == "89001234567"
        assert wire.format_phone(PHONE, "7") == "79001234567"

    @pytest.mark.parametrize("e164", ["+4915112345678", "9001234567x", "+7900123456", "", "+7\u0669001234567"])
    def test_a_foreign_or_malformed_number_is_rejected(self, e164: str) -> None:
        with pytest.raises(ProviderRejected):
            wire.format_phone(Phone(e164), "8")


class TestRedaction:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("phone 89001234567 busy", "phone ••• busy"),
            ("+7 (900) 123-45-67", "+•••"),
            ("8.900.123.45.67, 8_900_123_45_67", "•••"),
            ("code 0 4 2 1 3 7!", "code •••!"),
            ("code 04\u200b21\u200b37", "code •••"),
            ("\uff10\uff14\uff12\uff11", "•••"),
            ("error 403: limit 10", "error 403: limit 10"),
            (f"token {TOKEN} of {USER_ID}", "token ••• of •••"),
            ("not-a-\x00real-token", "•••"),
        ],
    )
    def test_secrets_phones_and_codes_are_redacted_and_words_stay(self, text: str, shown: str) -> None:
        assert Redactor([TOKEN, USER_ID])(text) == shown

    def test_a_secret_at_the_length_limit_is_redacted_whole(self) -> None:
        assert "not-a" not in Redactor([TOKEN])("x" * 195 + TOKEN)

    def test_a_secret_that_begins_with_another_secret_is_redacted_whole(self) -> None:
        assert Redactor(["made-up", "made-up-token"])("made-up-token") == "•••"

    def test_without_secrets_only_digits_are_redacted(self) -> None:
        assert Redactor(["", ""])("abc 1234") == "abc •••"

    @given(before=st.text(), after=st.text(), secret=st.sampled_from([TOKEN, CABINET_TOKEN, USER_ID]))
    def test_a_secret_is_redacted_in_any_surrounding_text(self, before: str, after: str, secret: str) -> None:
        shown = Redactor([TOKEN, CABINET_TOKEN, USER_ID])(before + secret + after)
        assert secret not in shown
        assert len(shown) <= 200

    @given(
        before=st.text(),
        after=st.text(),
        digits=st.sampled_from([PIN, "9001234567", "89001234567", "+79001234567"]),
        separator=st.text(alphabet=" -().,/_\t\u00a0\u2013\u200b", max_size=4),
    )
    def test_a_code_or_phone_is_redacted_in_any_spelling(
        self, before: str, after: str, digits: str, separator: str
    ) -> None:
        shown = Redactor([])(before + separator.join(digits) + after)
        assert not re.search(r"\d{4}", shown)
        assert digits.lstrip("+") not in re.sub(r"[\W_]", "", shown)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
KEYS = (
    st.sampled_from(
        [
            "success",
            "data",
            "call_id",
            "key",
            "pin",
            "operator",
            "phone",
            "message",
            "error",
            "code",
            "status",
            "balance",
            "id",
        ]
    )
    | st.text()
)
JSON = st.recursive(
    LEAVES | st.sampled_from([PIN, TOKEN, "89001234567"]),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=10,
)
BODIES = st.binary() | JSON.map(lambda value: json.dumps(value).encode())
STATUSES = st.sampled_from([200, 201, 204, 302, 400, 401, 403, 404, 422, 429, 500, 502]) | st.integers(200, 599)


def client_answered(status: int, body: bytes) -> PlusofonClient:
    return PlusofonClient(
        base_url="https://plusofon.test",
        user_id=USER_ID,
        access_token=TOKEN,
        cabinet_token=CABINET_TOKEN,
        **http_options(transport=httpx.MockTransport(lambda _: httpx.Response(status, content=body))),
    )


def is_success(status: int, body: bytes) -> bool:
    """Return whether a call was certainly placed, by an implementation independent of the code's."""
    try:
        value = json.loads(body)
        return status == 200 and value["success"] is True and value["data"]["call_id"] not in {"", None}
    except (ValueError, TypeError, KeyError, IndexError):
        return False


@given(status=STATUSES, body=BODIES)
async def test_an_arbitrary_response_never_crashes_and_never_counts_as_a_success(status: int, body: bytes) -> None:
    async with client_answered(status, body) as client:
        outcome = await client.initiate_call(PHONE, PIN, Lang.RU, 2)
    assert isinstance(outcome, Placed | Refused | Unknown)
    assert not isinstance(outcome, Placed) or is_success(status, body)


@given(status=STATUSES, data=JSON)
async def test_a_success_with_arbitrary_data_is_placed_or_unknown_but_never_refused(status: int, data: object) -> None:
    """A refusal would refund the reservation of a call that was paid for."""
    body = json.dumps({"success": True, "data": data, "message": "no access"}).encode()
    async with client_answered(status, body) as client:
        outcome = await client.initiate_call(PHONE, PIN, Lang.RU, 2)
    assert isinstance(outcome, Placed | Unknown)


@given(status=STATUSES, data=JSON | st.dictionaries(st.sampled_from(["key", "pin", "operator", "phone"]), JSON))
async def test_a_success_with_arbitrary_data_never_crashes_flash_or_reverse_calls(status: int, data: object) -> None:
    """Each may have placed a flash call; without a number to dial, no reverse call was placed."""
    body = json.dumps({"success": True, "data": data}).encode()
    async with client_answered(status, body) as client:
        flash = await client.send_flash_call(PHONE, "0421")
        reverse = await client.call_to_auth(PHONE, "https://service.test/hooks/made-up")
    assert isinstance(flash, Placed | Unknown)
    assert isinstance(reverse, Placed | Refused)
    assert not isinstance(reverse, Placed) or reverse.dial


@given(status=STATUSES, body=BODIES)
async def test_an_arbitrary_response_to_a_query_raises_only_provider_errors(status: int, body: bytes) -> None:
    async with client_answered(status, body) as client:
        for ask in (client.get_account, client.get_balance, lambda: client.check_call_status("abc")):
            try:
                await ask()
            except ProviderError:
                continue


@given(message=JSON, status=STATUSES)
async def test_a_refusal_never_contains_the_code_the_phone_or_a_token(message: object, status: int) -> None:
    body = json.dumps({"success": False, "message": message}).encode()
    async with client_answered(status, body) as client:
        outcome = await client.initiate_call(PHONE, PIN, Lang.RU, 2)
    assert isinstance(outcome, Refused)
    for secret in (PIN, "9001234567", TOKEN):
        assert secret not in repr(outcome)
