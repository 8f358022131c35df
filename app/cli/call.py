"""``call``: one real call with a spoken code, to hear that everything works."""

import asyncio
from typing import Annotated

import typer

from app.api.problem_types import detail_of
from app.cli.common import Yes, examples, fail
from app.cli.container import run_with_container
from app.cli.phone import PhoneArgument, read_phone
from app.container import Container, make_network
from app.sandbox.network import VirtualNetwork
from app.settings import Mode, load_settings
from app.verification.channels import Channel
from app.verification.check import CheckRequest
from app.verification.code import normalize_code
from app.verification.errors import ProviderError, VerificationError, VerificationNotFound
from app.verification.model import CallStatus, Lang, Status, Verification
from app.verification.ports import CallId
from app.verification.service import VerificationService
from app.verification.start import StartRequest

cli = typer.Typer()

_CLIENT = "command-line"  # the client of the verification, in the statistics of the fraud guard too
_INTERVAL = 1.0  # seconds between status requests
_TIMEOUT = 90.0  # seconds in which a call has rung, was answered, and has ended
_ANSWERED = (CallStatus.ANSWERED, CallStatus.COMPLETED)


@cli.command(epilog=examples("call +79001234567", "call 89001234567 --lang en --yes --no-check"))
def call(
    phone: PhoneArgument,
    lang: Annotated[Lang, typer.Option(help="The language in which the code is spoken.")] = Lang.RU,
    *,
    yes: Yes = False,
    check: Annotated[bool, typer.Option(help="Ask what was heard, and say whether it was right.")] = True,
) -> None:
    """Place one real call, and ask which code was heard.

    It shows how the call goes, costs as much as any call, and counts against the limits as any does. In sandbox mode
    nobody is called, and the virtual phone answers by itself. Exit code 0: the right code was heard (with --no-check:
    the call was answered).
    """
    number, settings = read_phone(phone), load_settings()
    if settings.mode is Mode.PRODUCTION and not yes:
        price = f"about {settings.call.price_rub} RUB (CALL_PRICE_RUB)"
        if not typer.confirm(f"Call {number.masked} for {price}?", err=True):
            raise fail("Nobody was called.")
    network = make_network(settings)
    interval = min(_INTERVAL, settings.sandbox.pace_seconds) if network else _INTERVAL
    timeout = _TIMEOUT if Channel.VOICE not in settings.relay.channels else 0  # a relay may have no status to ask for
    request = StartRequest(
        client=_CLIENT, phone=number.e164, purpose=settings.purposes[0], channels=(Channel.VOICE,), lang=lang
    )

    async def place(container: Container) -> None:
        placed = (await container.service.start(request)).verification
        typer.echo(f"{placed.id}: {placed.phone.masked} is called.")
        last = await _follow(container.service, placed, timeout=timeout, interval=interval)
        if last.test:
            typer.echo("This is one of TEST_NUMBERS: nobody was called.")
        elif check:
            await _check(container.service, last, await _hear(network, last))
        elif last.latest_call is None or last.latest_call.state.status not in _ANSWERED:
            raise fail("The call was not answered, as far as is known.")

    try:
        run_with_container(place, settings, network)
    except VerificationError as error:
        raise fail(detail_of(error)) from None


async def _follow(
    service: VerificationService,
    verification: Verification,
    *,
    timeout: float,  # noqa: ASYNC109 - the last state is returned, not an error raised
    interval: float,
) -> Verification:
    """Print each state of the call until it ends or ``timeout`` (seconds) is over; return the last one."""
    latest, shown = verification, ""
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        placed = latest.latest_call
        state = (placed.state.provider_status or placed.state.status.replace("_", " ")) if placed else "not placed"
        if state != shown:
            typer.echo(f"  {state}")
            shown = state
        if placed is None or placed.state.status.is_final or asyncio.get_running_loop().time() > deadline:
            return latest
        await asyncio.sleep(interval)
        try:
            await service.calls.follow(CallId(latest.id, placed.call_number))
        except ProviderError:
            typer.echo("  (the provider does not say how the call goes)")
        try:
            latest = await service.read(client=_CLIENT, verification_id=latest.id)
        except VerificationNotFound:
            raise fail("The provider says that the call was never placed; nothing was counted.") from None


async def _hear(network: VirtualNetwork | None, verification: Verification) -> str | None:
    """Return the code that was heard, as typed at the terminal or by the virtual phone of the sandbox."""
    latest = verification.latest_call
    if latest is None or latest.state.status.is_unanswered:
        return None
    if network:
        calls = network.calls_of(verification.phone.e164)
        return calls[-1].heard if calls else None
    heard: str = await asyncio.to_thread(
        typer.prompt, "Which code was heard? (empty: none)", default="", show_default=False
    )
    return heard or None


async def _check(service: VerificationService, verification: Verification, heard: str | None) -> None:
    if heard is None:
        raise fail("No code was heard.")
    try:
        code = normalize_code(heard)
    except ValueError as error:
        raise fail(f"That is no code: {error}.") from None
    result = await service.check.by_id(CheckRequest(client=_CLIENT, code=code), verification.id)
    if result.status is not Status.VERIFIED:
        raise fail("That is not the code that was to be spoken.")
    typer.echo("That is the code: calls arrive, and what is heard verifies.")
