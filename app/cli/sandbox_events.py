"""``events tail`` and ``events trigger``: the webhook events of the sandbox that runs, as they happen and on demand."""

import json
import random
import secrets
import signal
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import httpx
import typer

from app.cli.common import AsJson, examples, fail
from app.cli.stores import find_sandbox, run_with_stores, settings_of
from app.sandbox.run_file import RunningSandbox
from app.standard_webhooks import parse_secret, sign
from app.stores import Stores
from app.verification.webhooks import EventType

cli = typer.Typer()

_POLL = 0.3  # seconds between requests for news
_TIMEOUT = 30.0  # seconds in which an event that was triggered is sent
_FORWARD_TIMEOUT = 10.0  # seconds, as the service waits for a receiver

_TYPES = ", ".join(EventType)

_Attempt = Mapping[str, Any]  # a WebhookAttempt of GET /sandbox/events
_ApiKey = Annotated[str | None, typer.Option(envvar="API_KEY", help="A key of the sandbox's API_KEYS, if it has any.")]


def _read_type(text: str) -> EventType:
    try:
        return EventType(text)
    except ValueError:
        raise typer.BadParameter(f"must be one of {_TYPES}") from None


@cli.command(epilog=examples("events tail", "events tail --forward-to localhost:9000/hooks/phone"))
def tail(
    forward_to: Annotated[
        str | None, typer.Option(metavar="URL", help="Post each event there too, signed as the service does.")
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(envvar="WEBHOOK_SECRET", help="The secret that signs, whsec_…; without it, a new one is shown."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Print each event that the running sandbox sends, until Ctrl-C.

    It has the events of all clients, also of those without a webhook_url.
    """
    api = _open_api(_find_sandbox(), None)
    forward = _forwarder(forward_to, secret) if forward_to else None
    last = _attempts(api, after=0)[-1:]  # what was sent before is not news
    interrupts: list[int] = []

    def stop(number: int, _: object) -> None:
        interrupts.append(number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once

    # A KeyboardInterrupt can come while an object is destroyed, where it is lost.
    signal.signal(signal.SIGINT, stop)
    for attempt in _follow(api, after=last[0]["number"] if last else 0, until=lambda: bool(interrupts)):
        typer.echo(json.dumps(attempt, ensure_ascii=False) if as_json else _line(attempt))
        if forward:
            typer.echo(f"          {forward(attempt)}", err=as_json)


@cli.command(epilog=examples("events trigger verification.verified"))
def trigger(
    event_type: Annotated[
        str,
        typer.Argument(parser=_read_type, metavar="TYPE", autocompletion=lambda: list(EventType), help=_TYPES),
    ],
    api_key: _ApiKey = None,
) -> None:
    """Have the running sandbox send an event of this type.

    A made-up phone is verified, so the events before it are sent too. For verification.expired the verification is
    deleted from the sandbox's Redis, as if CODE_LIFETIME_SECONDS had passed.
    """
    sandbox = _find_sandbox()
    api = _open_api(sandbox, api_key)
    last = _attempts(api, after=0)[-1:]
    phone = f"+7900{random.randrange(1_000_000, 10_000_000)}"  # noqa: S311 - no secret
    started = _request(api, "POST", "/verify/start", phone=phone, channel="voice")
    verification = {"verification_id": started["verification_id"]}
    match event_type:
        case EventType.VERIFIED:
            _request(api, "POST", "/verify/check", **verification, code=_hear(api, phone))
        case EventType.LOCKED:
            wrong = f"{(int(_hear(api, phone)) + 1) % 10 ** started['code_length']:0{started['code_length']}}"
            while _request(api, "POST", "/verify/check", **verification, code=wrong)["status"] != "locked":
                pass
        case EventType.CANCELED:
            _request(api, "POST", f"/verify/{started['verification_id']}/cancel")
        case EventType.EXPIRED:
            run_with_stores(partial(_expire, verification_id=started["verification_id"]), settings_of(sandbox))
    deadline = time.monotonic() + _TIMEOUT
    for attempt in _follow(api, after=last[0]["number"] if last else 0, until=lambda: time.monotonic() > deadline):
        if attempt["event"]["data"]["verification_id"] == started["verification_id"]:
            typer.echo(_line(attempt))
            if attempt["event"]["type"] == event_type:
                return
    raise fail(f"No {event_type} was sent within {_TIMEOUT:g} s. Does webhook_events of the client have it?")


async def _expire(stores: Stores, *, verification_id: str) -> None:
    await stores.verifications.expire(verification_id)
    await stores.webhooks.flush()


def _find_sandbox() -> RunningSandbox:
    sandbox = find_sandbox()
    if sandbox is None:
        raise fail("This is for a sandbox of yours that runs on this machine: `make run` starts one.")
    return sandbox


def _open_api(sandbox: RunningSandbox, api_key: str | None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    # Its certificate may be of another name: this is a socket of this machine.
    return httpx.Client(base_url=sandbox.url, headers=headers, verify=False, trust_env=False)  # noqa: S501


def _request(api: httpx.Client, method: str, path: str, **body: str) -> Any:  # noqa: ANN401 - parsed JSON
    """Return the parsed response, or end the command with the problem."""
    try:
        response = api.request(method, path, json=body or None)
    except httpx.TransportError:
        raise fail("The sandbox has stopped.") from None
    parsed = response.json()
    if response.is_error:
        raise fail(f"{parsed['detail']} (HTTP {response.status_code})")
    return parsed


def _attempts(api: httpx.Client, *, after: int) -> list[_Attempt]:
    attempts: list[_Attempt] = _request(api, "GET", f"/sandbox/events?after={after}")["attempts"]
    return attempts


def _follow(api: httpx.Client, *, after: int, until: Callable[[], bool]) -> Iterator[_Attempt]:
    """Return the attempts with a higher number as they are made."""
    while not until():
        for attempt in _attempts(api, after=after):
            after = attempt["number"]
            yield attempt
        time.sleep(_POLL)


def _hear(api: httpx.Client, phone: str) -> str:
    """Return the code, when the virtual phone has heard it."""
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        for call in _request(api, "GET", f"/sandbox/phones/{phone}/calls")["calls"]:
            if call["heard"]:
                return str(call["heard"])
        time.sleep(_POLL)
    raise fail("The virtual phone has heard no code.")


def _forwarder(url: str, secret: str | None) -> Callable[[_Attempt], str]:
    """Return a function that posts an event to ``url`` and returns how that went. Raises BadParameter."""
    if "://" not in url:
        url = f"http://{url}"
    if secret is None:
        secret = f"whsec_{b64encode(secrets.token_bytes(32)).decode()}"
        typer.echo(f"The secret of these webhooks (--secret or WEBHOOK_SECRET keeps one): {secret}", err=True)
    try:
        key = parse_secret(secret)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--secret") from None
    receiver = httpx.Client(timeout=_FORWARD_TIMEOUT, headers={"Content-Type": "application/json"})

    def forward(attempt: _Attempt) -> str:
        body = json.dumps(attempt["event"], separators=(",", ":"), ensure_ascii=True).encode()
        headers = sign(key, message_id=attempt["event_id"], timestamp=int(time.time()), body=body)
        try:
            return f"→ {receiver.post(url, content=body, headers=headers).status_code} {url}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"→ {url} failed: {error or type(error).__name__}"

    return forward


def _line(attempt: _Attempt) -> str:
    event = attempt["event"]
    data = event["data"]
    at = datetime.fromisoformat(attempt["sent_at"]).astimezone()
    call = f", call {data['call']['status']}" if data["call"] else ""
    outcome = ""
    if attempt["url"]:
        outcome = f"  → {attempt['url']} {attempt['error'] or 'accepted'}"
    return f"{at:%H:%M:%S}  {event['type']:<22}  {data['verification_id']}  {data['status']}{call}{outcome}"
