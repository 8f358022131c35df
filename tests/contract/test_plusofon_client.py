"""The Plusofon client: the exact requests it sends, and the outcome of documented and observed responses."""

import asyncio
import gzip
import json
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal

import httpx
import pytest
import respx

from app.providers.answer import DEFAULT_RETRY_AFTER
from app.providers.plusofon.client import PlusofonClient
from app.providers.plusofon.wire import PhonePrefix
from app.verification.errors import BalanceTooLow, ProviderError, ProviderRejected, ProviderUnavailable
from app.verification.model import (
    CallOutcome,
    CallState,
    CallStatus,
    Lang,
    Placed,
    ProviderAccount,
    Refused,
    Unknown,
)
from app.verification.phone import Phone
from tests.provider_options import http_options

BASE_URL = "https://plusofon.test"
USER_ID = "made-up-user"
TOKEN = "not-a-real-token"
CABINET_TOKEN = "not-a-real-cabinet-token"
PIN = "042137"
PHONE = Phone("+79001234567")

CALL = "/api/v1/flash-call/call"
STATUS = "/api/v1/flash-call/status"
FLASH_CALL = "/api/v1/flash-call/send"
REVERSE_CALL = "/api/v1/flash-call/call-to-auth"
ACCOUNTS = "/api/v1/flash-call"
BALANCE = "/api/v1/payment/balance"

PLACED = {"success": True, "data": {"call_id": "call-1"}}
PAGE_NOT_FOUND = {"jsonrpc": "2.0", "result": None, "error": {"code": 0, "message": "Page not found."}}
HOOK_URL = "https://service.test/hooks/plusofon/a-made-up-secret?call=vrf_made-up.1"
HTML = "<html><body>Bad gateway</body></html>"


def make_client(
    router: respx.Router,
    *,
    base_url: str = BASE_URL,
    phone_prefix: PhonePrefix = "8",
    cabinet_token: str | None = CABINET_TOKEN,
    connect_timeout: float = 3,
    timeout: float = 20,
) -> PlusofonClient:
    return PlusofonClient(
        base_url=base_url,
        user_id=USER_ID,
        access_token=TOKEN,
        cabinet_token=cabinet_token,
        phone_prefix=phone_prefix,
        **http_options(
            connect_timeout=connect_timeout, timeout=timeout, transport=httpx.MockTransport(router.async_handler)
        ),
    )


@pytest.fixture
def plusofon() -> respx.Router:
    return respx.Router(base_url=BASE_URL, assert_all_called=False)


@pytest.fixture
async def client(plusofon: respx.Router) -> AsyncIterator[PlusofonClient]:
    async with make_client(plusofon) as client:
        yield client


async def call(client: PlusofonClient) -> CallOutcome:
    return await client.initiate_call(PHONE, PIN, Lang.RU, 2)


QUESTIONS: dict[str, tuple[str, str, Callable[[PlusofonClient], Awaitable[object]]]] = {
    "status": ("POST", STATUS, lambda client: client.check_call_status("call-1")),
    "accounts": ("GET", ACCOUNTS, lambda client: client.get_account()),
    "balance": ("GET", BALANCE, lambda client: client.get_balance()),
}
any_question = pytest.mark.parametrize("question", list(QUESTIONS))


async def ask(client: PlusofonClient, plusofon: respx.Router, question: str, response: httpx.Response) -> object:
    method, path, asking = QUESTIONS[question]
    plusofon.request(method, path).mock(return_value=response)
    return await asking(client)


class TestRequests:
    async def test_the_request_for_a_call_is_exactly_as_documented(
        self, client: PlusofonClient, plusofon: respx.Router
    ) -> None:
        route = plusofon.post(CALL).respond(json=PLACED)
        await client.initiate_call(PHONE, PIN, Lang.EN, 3)
        request = route.calls.last.request
        assert str(request.url) == "https://plusofon.test/api/v1/flash-call/call"
        assert json.loads(request.content) == {"phone": "89001234567", "pin": PIN, "lang": "en", "repeat": 3}
        assert request.headers["Client"] == USER_ID
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert request.headers["Accept"] == "application/json"
        assert request.headers["Content-Type"] == "application/json"
        assert "Cookie" not in request.headers

    @pytest.mark.parametrize(("prefix", "spelled"), [("8", "89001234567"), ("7", "79001234567")])
    async def test_the_phone_begins_with_the_configured_prefix(
        self, plusofon: respx.Router, prefix: PhonePrefix, spelled: str
    ) -> None:
        route = plusofon.post(CALL).respond(json=PLACED)
        async with make_client(plusofon, phone_prefix=prefix) as client:
            await call(client)
        assert json.loads(route.calls.last.request.content)["phone"] == spelled

    async def test_a_number_that_is_not_russian_is_refused_without_a_request(
        self, client: PlusofonClient, plusofon: respx.Router
    ) -> None:
        route = plusofon.post(CALL).respond(json=PLACED)
        outcome = await client.initiate_call(Phone("+4915112345678"), PIN, Lang.RU, 2)
        assert isinstance(outcome, Refused)
        assert not route.called

    async def test_the_call_status_is_requested_with_the_access_token(
        self, client: PlusofonClient, plusofon: respx.Router
    ) -> None:
        route = plusofon.post(STATUS).respond(json={"success": True, "data": {"status": "ringing"}})
        await client.check_call_status("call-1")
        request = route.calls.last.request
        assert json.loads(request.content) == {"call_id": "call-1"}
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"

    @pytest.mark.parametrize(("cabinet", "used"), [(CABINET_TOKEN, CABINET_TOKEN), (None, TOKEN), ("", TOKEN)])
    async def test_accounts_and_balance_use_the_cabinet_token_if_configured(
        self, plusofon: respx.Router, cabinet: str | None, used: str
    ) -> None:
        accounts = plusofon.get(ACCOUNTS).respond(json={"success": True, "data": []})
        balance = plusofon.get(BALANCE).respond(json={"balance": 1})
        async with make_client(plusofon, cabinet_token=cabinet) as client:
            await client.get_account()
            await client.get_balance()
        for route in (accounts, balance):
            request = route.calls.last.request
            assert request.headers["Authorization"] == f"Bearer {used}"
            assert request.headers["Client"] == USER_ID
            assert request.content == b""

    async def test_a_path_in_the_base_url_is_kept(self) -> None:
        plusofon = respx.Router()
        route = plusofon.post("http://127.0.0.1:9/sandbox/api/v1/flash-call/call").respond(json=PLACED)
        async with make_client(plusofon, base_url="http://127.0.0.1:9/sandbox/") as client:
            assert await call(client) == Placed("call-1")
        assert route.called

    async def test_a_cookie_is_not_sent_back(self, client: PlusofonClient, plusofon: respx.Router) -> None:
        """A session cookie of the provider would link requests that carry different tokens."""
        route = plusofon.post(CALL).respond(json=PLACED, headers={"Set-Cookie": "session=abc; Path=/"})
        await call(client)
        await call(client)
        assert "Cookie" not in route.calls.last.request.headers


class TestCallOutcomes:
    @pytest.mark.parametrize(("call_id", "ref"), [("call-1", "call-1"), (17, "17")])
    async def test_a_success_with_a_call_id_is_a_placed_call(
        self, client: PlusofonClient, plusofon: respx.Router, call_id: object, ref: str
    ) -> None:
        plusofon.post(CALL).respond(json={"success": True, "data": {"call_id": call_id}})
        assert await call(client) == Placed(ref)

    @pytest.mark.parametrize(
        ("response", "message"),
        [
            (
                httpx.Response(200, json={"success": False, "code": 500, "message": "error find flashcall account: x"}),
                "error find flashcall account: x",
            ),
            (httpx.Response(200, json=PAGE_NOT_FOUND), "Page not found."),
            (httpx.Response(400, json={"message": "Bad phone"}), "Bad phone"),
            (httpx.Response(401), "HTTP 401"),
            (httpx.Response(403, json={"success": False, "message": "Недостаточно прав"}), "Недостаточно прав"),
            (httpx.Response(404, html=HTML), "HTTP 404"),
            (httpx.Response(422, json={"message": {"phone": ["is required"]}}), "phone: is required"),
            (httpx.Response(500, json={"message": "no access"}), "no access"),
            (httpx.Response(500, text="no access"), "HTTP 500"),
        ],
        ids=lambda value: f"{value.status_code} {value.text[:60]}" if isinstance(value, httpx.Response) else None,
    )
    async def test_a_refusal_has_the_message_of_the_provider(
        self, client: PlusofonClient, plusofon: respx.Router, response: httpx.Response, message: str
    ) -> None:
        plusofon.post(CALL).mock(return_value=response)
        outcome = await call(client)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderRejected)
        assert outcome.error.message == message

    async def test_insufficient_funds_are_refused_as_balance_too_low(
        self, client: PlusofonClient, plusofon: respx.Router
    ) -> None:
        plusofon.post(CALL).respond(json={"success": False, "message": "Недостаточно средств на счёте"})
        outcome = await call(client)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, BalanceTooLow)

    @pytest.mark.parametrize(("header", "seconds"), [({"Retry-After": "7"}, 7), ({}, DEFAULT_RETRY_AFTER)])
    async def test_status_429_is_a_refusal_with_retry_after(
        self, client: PlusofonClient, plusofon: respx.Router, header: dict[str, str], seconds: int
    ) -> None:
        plusofon.post(CALL).respond(429, headers=header)
        outcome = await call(client)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderUnavailable)
        assert outcome.error.retry_after == seconds

    @pytest.mark.parametrize(
        "response",
        [
            httpx.Response(200),
            httpx.Response(200, html=HTML),
            httpx.Response(200, json=[]),
            httpx.Response(200, json={}),
            httpx.Response(200, json={"success": True}),
            httpx.Response(200, json={"success": True, "data": {"call_id": None}}),
            httpx.Response(200, json={"success": 1, "data": {"call_id": "call-1"}}),
            httpx.Response(201, json=PLACED),
            httpx.Response(204),
            httpx.Response(302, headers={"Location": "https://plusofon.test/login"}),
            httpx.Response(500),
            httpx.Response(500, json={"message": "Server Error"}),
            httpx.Response(502, html=HTML),
            httpx.Response(504),
        ],
        ids=lambda response: f"{response.status_code} {response.text}",
    )
    async def test_an_unclear_response_is_unknown_and_the_request_is_sent_once(
        self, client: PlusofonClient, plusofon: respx.Router, response: httpx.Response
    ) -> None:
        route = plusofon.post(CALL).mock(return_value=response)
        assert isinstance(await call(client), Unknown)
        assert route.call_count == 1

    @pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout])
    async def test_a_failed_connection_is_a_refusal(
        self, client: PlusofonClient, plusofon: respx.Router, error: type[httpx.HTTPError]
    ) -> None:
        plusofon.post(CALL).mock(side_effect=error)
        outcome = await call(client)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderUnavailable)

    @pytest.mark.parametrize(
        "error",
        [
            *(httpx.ReadTimeout, httpx.WriteTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError),
            *(httpx.DecodingError, OSError, TimeoutError),
        ],
    )
    async def test_an_error_after_the_connection_is_unknown(
        self, client: PlusofonClient, plusofon: respx.Router, error: type[Exception]
    ) -> None:
        plusofon.post(CALL).mock(side_effect=error("x"))
        assert await call(client) == Unknown(error.__name__)

    async def test_an_unexpected_exception_is_logged_and_the_call_unknown(
        self, client: PlusofonClient, plusofon: respx.Router, caplog: pytest.LogCaptureFixture
    ) -> None:
        plusofon.post(CALL).mock(side_effect=KeyError("bug"))
        assert isinstance(await call(client), Unknown)
        assert [record.message for record in caplog.records] == ["plusofon.unexpected_error"]

    async def test_cancellation_is_propagated(self, client: PlusofonClient, plusofon: respx.Router) -> None:
        async def never(_: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

        plusofon.post(CALL).mock(side_effect=never)
        task = asyncio.create_task(call(client))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_compressed_response_is_read_although_identity_was_requested(
        self, client: PlusofonClient, plusofon: respx.Router
    ) -> None:
        body = gzip.compress(json.dumps(PLACED).encode())
        route = plusofon.post(CALL).respond(content=body, headers={"Content-Encoding": "gzip"})
        assert await call(client) == Placed("call-1")
        assert route.calls.last.request.headers["Accept-Encoding"] == "identity"


class TestOneRetry:
    @pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout])
    async def test_a_failed_connection_is_retried_once(
        self, plusofon: respx.Router, error: type[httpx.HTTPError]
    ) -> None:
        route = plusofon.post(CALL).mock(side_effect=[error("x"), httpx.Response(200, json=PLACED)])
        async with make_client(plusofon) as client:
            assert await call(client) == Placed("call-1")
        assert route.call_count == 2
        bodies = {sent.request.content for sent in route.calls}
        assert len(bodies) == 1

    @pytest.mark.parametrize(
        "effect",
        [
            *(httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ReadTimeout, httpx.WriteError, httpx.ReadError),
            *(OSError, TimeoutError, KeyError, httpx.RemoteProtocolError),
            *(httpx.Response(429), httpx.Response(500), httpx.Response(503), httpx.Response(502, html=HTML)),
        ],
        ids=lambda effect: effect.__name__ if isinstance(effect, type) else f"{effect.status_code}",
    )
    async def test_no_other_failure_is_retried(
        self, plusofon: respx.Router, effect: type[Exception] | httpx.Response
    ) -> None:
        route = plusofon.post(CALL).mock(side_effect=[effect, httpx.Response(200, json=PLACED)])
        async with make_client(plusofon) as client:
            assert not isinstance(await call(client), Placed)
        assert route.call_count == 1


class TestFlashCalls:
    @pytest.mark.parametrize(
        ("pin", "body"),
        [("0421", {"phone": "89001234567", "pin": "0421"}), (None, {"phone": "89001234567"})],
    )
    async def test_the_request_is_exactly_as_documented(
        self, client: PlusofonClient, plusofon: respx.Router, pin: str | None, body: dict[str, str]
    ) -> None:
        route = plusofon.post(FLASH_CALL).respond(json={"success": True, "data": {"key": "key-1", "pin": "7788"}})
        assert await client.send_flash_call(PHONE, pin) == Placed("key-1", code="7788")
        request = route.calls.last.request
        assert json.loads(request.content) == body
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"

    async def test_the_operator_is_returned(self, client: PlusofonClient, plusofon: respx.Router) -> None:
        plusofon.post(FLASH_CALL).respond(json={"success": True, "data": {"key": "key-1", "operator": " MTS "}})
        assert await client.send_flash_call(PHONE, "0421") == Placed("key-1", operator="mts")

    @pytest.mark.parametrize(
        ("pin", "data"),
        [("0421", {"key": "key-1", "pin": "12345"}), ("0421", {"pin": "0421"}), (None, {"key": "key-1"})],
    )
    async def test_a_placed_call_without_a_usable_code_is_unknown(
        self, client: PlusofonClient, plusofon: respx.Router, pin: str | None, data: dict[str, str]
    ) -> None:
        plusofon.post(FLASH_CALL).respond(json={"success": True, "data": data})
        outcome = await client.send_flash_call(PHONE, pin)
        assert isinstance(outcome, Unknown)
        assert "1234" not in outcome.why

    @pytest.mark.parametrize("pin", ["123", "12345", "123456", "12a4", "١٢٣٤", ""])
    async def test_a_code_that_is_not_four_digits_is_refused_without_a_request(
        self, client: PlusofonClient, plusofon: respx.Router, pin: str
    ) -> None:
        route = plusofon.post(FLASH_CALL)
        outcome = await client.send_flash_call(PHONE, pin)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderRejected)
        assert not route.called

    @pytest.mark.parametrize(
        ("effect", "outcome"),
        [
            (httpx.Response(200, json={"success": False, "message": "no"}), Refused),
            (httpx.Response(429), Refused),
            (httpx.ConnectError("x"), Refused),
            (httpx.Response(502, html=HTML), Unknown),
            (httpx.ReadTimeout("x"), Unknown),
        ],
        ids=lambda value: f"{value!r} {value.text}" if isinstance(value, httpx.Response) else repr(value),
    )
    async def test_failures_have_the_same_outcomes_as_for_a_voice_call(
        self,
        client: PlusofonClient,
        plusofon: respx.Router,
        effect: httpx.Response | Exception,
        outcome: type[CallOutcome],
    ) -> None:
        plusofon.post(FLASH_CALL).mock(side_effect=[effect] * 2)  # a connection is tried twice
        assert isinstance(await client.send_flash_call(PHONE, "0421"), outcome)


class TestReverseCalls:
    async def test_the_request_is_exactly_as_documented(self, client: PlusofonClient, plusofon: respx.Router) -> None:
        answer = {"success": True, "data": {"key": "key-1", "phone": "8 (800) 555-35-35"}}
        route = plusofon.post(REVERSE_CALL).respond(json=answer)
        assert await client.call_to_auth(PHONE, HOOK_URL) == Placed("key-1", dial=Phone("+78005553535"))
        request = route.calls.last.request
        assert json.loads(request.content) == {"phone": "89001234567", "hook_url": HOOK_URL}
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"

    @pytest.mark.parametrize(
        ("effect", "error"),
        [
            (httpx.Response(200, json={"success": True, "data": {"key": "key-1", "phone": "112"}}), ProviderRejected),
            (httpx.Response(200, json={"success": True, "data": {"phone": "88005553535"}}), ProviderRejected),
            (httpx.Response(200, json={"success": False, "message": "no"}), ProviderRejected),
            (httpx.Response(402, json={"success": False, "message": "insufficient funds"}), BalanceTooLow),
            (httpx.Response(502, html=HTML), ProviderUnavailable),
            (httpx.Response(200, html=HTML), ProviderUnavailable),
            (httpx.ReadTimeout("x"), ProviderUnavailable),
            (httpx.ConnectError("x"), ProviderUnavailable),
            (KeyError("bug"), ProviderUnavailable),
        ],
        ids=lambda value: f"{value!r} {value.text}" if isinstance(value, httpx.Response) else repr(value),
    )
    async def test_a_response_without_a_number_to_dial_is_a_refusal(
        self,
        client: PlusofonClient,
        plusofon: respx.Router,
        effect: httpx.Response | Exception,
        error: type[ProviderError],
    ) -> None:
        route = plusofon.post(REVERSE_CALL).mock(side_effect=[effect])
        outcome = await client.call_to_auth(PHONE, HOOK_URL)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, error)
        assert route.call_count == 1

    async def test_the_secret_of_the_callback_url_is_redacted(
        self, client: PlusofonClient, plusofon: respx.Router, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        message = f"bad hook {HOOK_URL}, that is /hooks/plusofon/a-made-up-secret, for {TOKEN}"
        plusofon.post(REVERSE_CALL).respond(json={"success": False, "message": message})
        outcome = await client.call_to_auth(PHONE, HOOK_URL)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderRejected)
        assert outcome.error.message == "bad hook •••, that is /hooks/plusofon/•••, for •••"
        assert "a-made-up-secret" not in caplog.text


class TestQuestions:
    async def test_a_call_status_is_returned(self, client: PlusofonClient, plusofon: respx.Router) -> None:
        response = httpx.Response(200, json={"success": True, "data": {"status": "no_answer", "message": "…"}})
        assert await ask(client, plusofon, "status", response) == CallState(CallStatus.NO_ANSWER)

    async def test_an_unknown_status_word_is_kept_and_logged_redacted(
        self, client: PlusofonClient, plusofon: respx.Router, caplog: pytest.LogCaptureFixture
    ) -> None:
        response = httpx.Response(200, json={"success": True, "data": {"status": "saying 447144 to 89001234567"}})
        state = await ask(client, plusofon, "status", response)
        assert state == CallState(CallStatus.INITIATED, provider_status="saying ••• to •••")
        [record] = [record for record in caplog.records if record.name == "app.providers.plusofon.client"]
        assert record.getMessage() == "plusofon.unknown_call_status"
        assert vars(record)["word"] == "saying ••• to •••"

    async def test_accounts_are_returned_without_tokens(self, client: PlusofonClient, plusofon: respx.Router) -> None:
        entry = {"id": 7, "name": "Main", "access_token": TOKEN}
        response = httpx.Response(200, json={"success": True, "data": [entry, None, {}]})
        assert await ask(client, plusofon, "accounts", response) == [ProviderAccount("7", "Main")]

    async def test_the_balance_is_an_exact_decimal(self, client: PlusofonClient, plusofon: respx.Router) -> None:
        assert await ask(client, plusofon, "balance", httpx.Response(200, text='{"balance": 0.1}')) == Decimal("0.1")

    @any_question
    @pytest.mark.parametrize(
        "response",
        [
            httpx.Response(200, json={"success": False, "message": "No such thing"}),
            httpx.Response(200, json=PAGE_NOT_FOUND),
            httpx.Response(401),
            httpx.Response(403, json={"message": "Недостаточно прав"}),
            httpx.Response(404, html=HTML),
        ],
        ids=lambda response: f"{response.status_code} {response.text}",
    )
    async def test_a_refused_query_raises_provider_rejected(
        self, client: PlusofonClient, plusofon: respx.Router, question: str, response: httpx.Response
    ) -> None:
        with pytest.raises(ProviderRejected):
            await ask(client, plusofon, question, response)

    @any_question
    @pytest.mark.parametrize(
        "response",
        [
            httpx.Response(200),
            httpx.Response(200, html=HTML),
            httpx.Response(200, text="null"),
            httpx.Response(200, json={"success": True, "data": "x", "balance": "x"}),
            httpx.Response(302, headers={"Location": "/login"}),
            httpx.Response(429),
            httpx.Response(500),
            httpx.Response(502, html=HTML),
        ],
        ids=lambda response: f"{response.status_code} {response.text}",
    )
    async def test_an_unclear_response_to_a_query_raises_provider_unavailable(
        self, client: PlusofonClient, plusofon: respx.Router, question: str, response: httpx.Response
    ) -> None:
        with pytest.raises(ProviderUnavailable):
            await ask(client, plusofon, question, response)

    @any_question
    @pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, KeyError])
    async def test_any_exception_during_a_query_raises_provider_unavailable(
        self, client: PlusofonClient, plusofon: respx.Router, question: str, error: type[Exception]
    ) -> None:
        method, path, asking = QUESTIONS[question]
        plusofon.request(method, path).mock(side_effect=error("x"))
        with pytest.raises(ProviderUnavailable):
            await asking(client)


class TestSecrets:
    """No failure of the client reveals a token, a code or a phone."""

    SECRETS = (TOKEN, CABINET_TOKEN, USER_ID, PIN, "9001234567")

    @pytest.mark.parametrize("status", [200, 400, 403, 500])
    async def test_secrets_in_the_message_of_a_refusal_are_redacted(
        self, client: PlusofonClient, plusofon: respx.Router, caplog: pytest.LogCaptureFixture, status: int
    ) -> None:
        caplog.set_level(logging.DEBUG)
        quoted = f"{TOKEN} {CABINET_TOKEN} {USER_ID} pin {PIN} to 8 (900) 123-45-67 or +79001234567"
        plusofon.post(CALL).respond(status, json={"success": False, "message": quoted})
        outcome = await call(client)
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, ProviderRejected)
        assert outcome.error.message == "••• ••• ••• pin ••• to ••• or +•••"
        self.assert_no_secret(caplog, outcome.error)

    @any_question
    @pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadError, KeyError])
    async def test_a_network_failure_reveals_no_secret(
        self,
        client: PlusofonClient,
        plusofon: respx.Router,
        caplog: pytest.LogCaptureFixture,
        question: str,
        error: type[Exception],
    ) -> None:
        caplog.set_level(logging.DEBUG)
        method, path, asking = QUESTIONS[question]
        plusofon.request(method, path).mock(side_effect=error("x"))
        with pytest.raises(ProviderError) as caught:
            await asking(client)
        self.assert_no_secret(caplog, caught.value)

    def assert_no_secret(self, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
        shown = "".join([*traceback.format_exception(error), caplog.text, *(str(vars(log)) for log in caplog.records)])
        assert not [secret for secret in self.SECRETS if secret in shown]

    def test_the_repr_of_the_client_shows_no_secret(self, plusofon: respx.Router) -> None:
        assert not [secret for secret in self.SECRETS if secret in repr(make_client(plusofon))]


class TestConstruction:
    @pytest.mark.parametrize(
        "base_url",
        [
            "",
            "plusofon.ru",
            "ftp://plusofon.ru",
            "https://",
            "https://user:pw@plusofon.ru",
            "https://plusofon.ru:x",
            "\x00",
        ],
    )
    def test_an_invalid_base_url_is_rejected(self, plusofon: respx.Router, base_url: str) -> None:
        with pytest.raises(ValueError, match="base_url"):
            make_client(plusofon, base_url=base_url)

    @pytest.mark.parametrize("token", ["token\n", "to ken", "токен", "a\r\nX-Evil: 1"])
    def test_a_token_that_is_not_a_valid_header_is_rejected_without_showing_it(
        self, plusofon: respx.Router, token: str
    ) -> None:
        with pytest.raises(ValueError, match="cabinet_token") as caught:
            make_client(plusofon, cabinet_token=token)
        assert token not in str(caught.value)

    @pytest.mark.parametrize(("connect", "total"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
    def test_the_connect_timeout_must_be_positive_and_below_the_timeout(
        self, plusofon: respx.Router, connect: float, total: float
    ) -> None:
        with pytest.raises(ValueError, match="connect_timeout"):
            make_client(plusofon, connect_timeout=connect, timeout=total)

    async def test_a_client_can_be_constructed_without_an_event_loop(self) -> None:
        client = await asyncio.to_thread(
            lambda: PlusofonClient(
                base_url="https://restapi.plusofon.ru", user_id=USER_ID, access_token=TOKEN, **http_options()
            )
        )
        async with client:
            pass


async def test_the_message_of_a_refusal_is_its_reason_and_redacted(
    client: PlusofonClient, plusofon: respx.Router
) -> None:
    plusofon.post(CALL).respond(400, json={"message": "The number 89001234567 is wrong"})

    outcome = await client.initiate_call(PHONE, PIN, Lang.RU, 2)

    assert isinstance(outcome, Refused)
    assert outcome.error.reason == "The number ••• is wrong"
