"""Parsing a relay's responses: every row of the protocol, arbitrary input, and redaction of secrets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.providers.answer import DEFAULT_RETRY_AFTER, Answer, Redactor, read_answer
from app.providers.http import Unclear
from app.providers.relay import wire
from app.verification.channels import Channel
from app.verification.errors import BalanceTooLow, ProviderError, ProviderRejected, ProviderUnavailable
from app.verification.model import CallState, CallStatus, Lang
from app.verification.phone import Phone
from app.verification.ports import CallId, CallOrder

CALL = "vrf_made_up-1-voice"
SECRET = "whsec_bm90IGEgcmVhbCBzZWNyZXQsIGZvciB0ZXN0cw=="
ORDER = CallOrder(call_id=CallId("vrf_made_up", 1), phone=Phone("+79001234567"), code="042137", lang=Lang.EN, repeat=3)

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(["accepted", "placed", "refused", "ringing", "unknown_call", "balance_too_low"])


def answer(body: object, status: int = 200, retry_after: str | None = None) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(status, raw, retry_after=retry_after, redact=Redactor([SECRET]))


def refusal(body: object, status: int = 200, retry_after: str | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        wire.parse_placed(answer(body, status, retry_after), call=CALL)
    return caught.value


def test_a_call_name_is_made_of_verification_call_number_and_channel() -> None:
    names = {wire.name_call(CallId("vrf_a", call_number), channel) for call_number in (1, 2) for channel in Channel}
    assert "vrf_a-1-flash_call" in names
    assert len(names) == 6
    assert all(wire.CALL_REF.fullmatch(name) for name in names)


def test_an_order_has_every_field_needed_to_place_the_call() -> None:
    assert json.loads(wire.write_order(ORDER, Channel.VOICE, CALL)) == {
        "call": CALL,
        "channel": "voice",
        "phone": "+79001234567",
        "code": "042137",
        "lang": "en",
        "repeat": 3,
    }


class TestTaken:
    @pytest.mark.parametrize("status", [200, 201, 202])
    @pytest.mark.parametrize("word", ["accepted", "placed"])
    def test_an_accepted_call_is_looked_up_by_our_name(self, word: str, status: int) -> None:
        assert wire.parse_placed(answer({"status": word}, status), call=CALL) == CALL

    def test_an_accepted_call_is_looked_up_by_the_name_that_the_relay_returned(self) -> None:
        assert wire.parse_placed(answer({"status": "placed", "call": "Theirs_1-2"}), call=CALL) == "Theirs_1-2"

    @pytest.mark.parametrize("bad", [None, "", 7, True, ["x"], {}, "a b", "..", "a/b", "a?b", "a\r\nb", "ü", "x" * 129])
    def test_a_returned_name_that_is_not_safe_in_a_path_is_ignored(self, bad: object) -> None:
        assert wire.parse_placed(answer({"status": "placed", "call": bad}), call=CALL) == CALL

    @pytest.mark.parametrize("status", [203, 204, 206, 301, 400, 402, 404, 429, 500, 503])
    def test_an_acceptance_with_another_http_status_is_unclear(self, status: int) -> None:
        with pytest.raises(Unclear):
            wire.parse_placed(answer({"status": "accepted"}, status), call=CALL)


class TestRefused:
    @pytest.mark.parametrize("status", [200, 400, 401, 402, 403, 404, 409, 422, 451])
    def test_status_refused_is_a_refusal_with_its_reason(self, status: int) -> None:
        error = refusal({"status": "refused", "reason": "the line is down"}, status)
        assert isinstance(error, ProviderRejected)
        assert error.message == "the line is down"

    @pytest.mark.parametrize("reason", [None, "", " ", 7, ["x"], {"text": "x"}, True])
    def test_a_refusal_without_a_usable_reason_has_the_http_status_as_message(self, reason: object) -> None:
        error = refusal({"status": "refused", "reason": reason}, 403)
        assert isinstance(error, ProviderRejected)
        assert error.message == "HTTP 403"

    @pytest.mark.parametrize("status", [200, 402])
    def test_the_reason_balance_too_low_raises_balance_too_low(self, status: int) -> None:
        assert isinstance(refusal({"status": "refused", "reason": "balance_too_low"}, status), BalanceTooLow)

    @pytest.mark.parametrize(("status", "body"), [(429, b"slow down"), (429, b""), (503, b'{"status": "refused"}')])
    @pytest.mark.parametrize(("header", "wait"), [("17", 17), (None, DEFAULT_RETRY_AFTER), ("soon", 30), ("99999", 30)])
    def test_status_429_or_503_is_unavailable_with_a_bounded_retry_after(
        self, status: int, body: bytes, header: str | None, wait: int
    ) -> None:
        error = refusal(body, status, header)
        assert isinstance(error, ProviderUnavailable)
        assert error.retry_after == wait

    def test_a_reason_that_repeats_phone_code_or_secret_is_redacted(self) -> None:
        echo = f"no route for +7 (900) 123-45-67, code 0-4-2-1-3-7, {SECRET[:9]}\u200b{SECRET[9:]}\r\nX: y"
        error = refusal({"status": "refused", "reason": echo})
        assert isinstance(error, ProviderRejected)
        assert error.message == "no route for +•••, code •••, •••  X: y"

    @pytest.mark.parametrize("word", ["refused ", "REFUSED", "denied", "error", "failed", None, True, 0, ["refused"]])
    def test_any_other_status_word_is_unclear(self, word: object) -> None:
        with pytest.raises(Unclear):
            wire.parse_placed(answer({"status": word, "reason": "x"}, 403), call=CALL)

    @pytest.mark.parametrize("status", [201, 202, 302, 500, 502, 504])
    def test_status_refused_with_an_unfitting_http_status_is_unclear(self, status: int) -> None:
        with pytest.raises(Unclear):
            wire.parse_placed(answer({"status": "refused"}, status), call=CALL)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b'"accepted"', b"accepted", b"<html>refused</html>", b'{"status": NaN}', b"\xff\xfe"),
        *(b"[" * 60_000, b'{"status": "accepted"', b'{"a": ' * 30_000, b'{"status": "accepted", "x": Infinity}'),
        *(b'{"status": "accepted", "x": 1e99999999999999999999}', b'[{"status": "accepted"}]'),
        *(b'{"status": {"status": "accepted"}}', b'{"status": ["accepted"]}', b'{"Status": "accepted"}'),
    ],
    ids=lambda body: f"{body[:20]!r} of {len(body)}",
)
def test_any_other_response_to_an_order_is_unclear(body: bytes) -> None:
    for status in (200, 202, 204, 302, 400, 401, 403, 404, 500, 502, 503, 504):
        with pytest.raises(Unclear):
            wire.parse_placed(answer(body, status, "5"), call=CALL)


@given(
    status=st.integers(100, 599) | st.sampled_from([200, 202, 404, 429, 503]),
    body=st.binary()
    | st.fixed_dictionaries({}, optional={"status": WORDS | JSON, "reason": WORDS | JSON, "call": JSON}),
    retry_after=st.none() | st.text(),
)
def test_an_arbitrary_response_never_crashes_the_parser(status: int, body: object, retry_after: str | None) -> None:
    read = answer(body, status, retry_after)
    try:
        assert wire.CALL_REF.fullmatch(wire.parse_placed(read, call=CALL))
        assert status in {200, 201, 202}
    except ProviderError:
        assert status in {429, 503, 200} or 400 <= status < 500
    except Unclear:
        pass
    try:
        state = wire.parse_state(read)
        assert status == (200 if state else 404)
    except (ProviderUnavailable, Unclear):
        pass


class TestState:
    @pytest.mark.parametrize(
        ("word", "status"),
        [
            ("queued", CallStatus.INITIATED),
            *((word, CallStatus(word)) for word in ("ringing", "answered", "completed", "busy", "no_answer", "failed")),
        ],
    )
    def test_each_status_word_is_mapped_to_a_call_status(self, word: str, status: CallStatus) -> None:
        assert wire.parse_state(answer({"status": word})) == CallState(status)

    def test_unknown_call_means_that_the_call_was_never_placed(self) -> None:
        assert wire.parse_state(answer({"error": "unknown_call"}, 404)) is None

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            *((404, body) for body in (b"", b"unknown_call", b"{}", b'{"error": "Not Found"}', b'{"error": ["x"]}')),
            *((status, {"error": "unknown_call"}) for status in (200, 400, 403, 410, 500)),
            *((200, {"status": word}) for word in ("042137", "Ringing", "accepted", "", None, True)),
            *((200, {"status": ["busy"]}), (200, {"status": {}})),
            *((status, {"status": "busy"}) for status in (201, 202, 302, 404, 500)),
        ],
    )
    def test_any_other_response_is_unclear_and_never_means_not_placed(self, status: int, body: object) -> None:
        with pytest.raises(Unclear) as caught:
            wire.parse_state(answer(body, status))
        assert "042137" not in str(caught.value)

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_status_lookup_may_be_answered_with_retry_after(self, status: int) -> None:
        with pytest.raises(ProviderUnavailable) as caught:
            wire.parse_state(answer({}, status, "7"))
        assert caught.value.retry_after == 7


def test_the_repr_of_a_response_shows_none_of_its_fields() -> None:
    assert "042137" not in repr(answer({"status": "refused", "reason": "042137", "code": "042137"}))
