"""``call``: one real call with a spoken code, to see with one's own ear that everything works."""

import asyncio
import logging
from typing import Annotated, NoReturn

import typer

from app.api.problems import detail_of
from app.cli.common import PhoneArgument, Yes, fail, read_phone, why_redis_failed
from app.sandbox import VirtualNetwork
from app.settings import Mode, Settings, load_settings
from app.verification.channels import Channel
from app.verification.code import normalize_code
from app.verification.errors import ProviderError, StoreUnavailable, VerificationError, VerificationNotFound
from app.verification.model import CallStatus, Lang, Status, Verification
from app.verification.phone import Phone
from app.verification.ports import CallId
from app.verification.service import StartRequest, VerificationService
from app.wiring import make_network, open_service

_CLIENT = "command-line"  # whom the verification belongs to, in the statistics of the fraud guard too
_LOOK_EVERY = 1.0  # seconds
_PATIENCE = 90.0  # seconds in which a call has rung, was answered, and has ended

_HEARD = frozenset({CallStatus.ANSWERED, CallStatus.COMPLETED})


def call(
    phone: PhoneArgument,
    lang: Annotated[Lang, typer.Option(help="The language in which the code is spoken.")] = Lang.RU,
    *,
    yes: Yes = False,
    check: Annotated[bool, typer.Option(help="Ask what was heard, and say whether it was right.")] = True,
) -> None:
    """Place one real call that speaks a code, show how it goes, and ask what was heard.

    It costs as much as any call, and counts against the limits as any does. In sandbox mode nobody is called, and the
    virtual phone answers by itself. Exit code 0: the right code was heard (with --no-check: the call was answered).
    """
    number, settings = read_phone(phone), load_settings()
    if settings.mode is Mode.PRODUCTION and not yes:
        price = f"about {settings.call.price_rub} RUB (CALL_PRICE_RUB)"
        if not typer.confirm(f"Call {number.masked} for {price}?", err=True):
            raise fail("Nobody was called.")
    logging.disable()  # whatever happens, the command itself tells it
    network = make_network(settings) if settings.mode is Mode.SANDBOX else None
    try:
        asyncio.run(_call(settings, network, number, lang, check=check))
    except StoreUnavailable as error:
        raise fail(why_redis_failed(settings, error)) from None
    except VerificationError as error:
        raise fail(detail_of(error)) from None


async def _call(settings: Settings, network: VirtualNetwork | None, phone: Phone, lang: Lang, *, check: bool) -> None:
    async with open_service(settings, network) as service:
        request = StartRequest(
            client=_CLIENT, phone=phone.e164, purpose=settings.purposes[0], channels=(Channel.VOICE,), lang=lang
        )
        placed = (await service.start(request)).verification
        typer.echo(f"{placed.id}: {placed.phone.masked} is called.")
        followed = Channel.VOICE not in settings.relay.channels  # a relay may not be able to tell how a call goes
        last = await _follow(service, placed, patience=_PATIENCE if followed else 0, every=_pause(settings))
        if last.test:
            typer.echo("This is one of TEST_NUMBERS: nobody was called.")
        elif not check:
            _judge_call(last)
        else:
            await _ask(service, last, await _hear(network, last))


def _pause(settings: Settings) -> float:
    return min(_LOOK_EVERY, settings.sandbox.pace_seconds) if settings.mode is Mode.SANDBOX else _LOOK_EVERY


async def _follow(
    service: VerificationService, verification: Verification, *, patience: float, every: float
) -> Verification:
    """Show each state of the call until its end, or until it has taken too long."""
    latest, shown = verification, ""
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        word = _word(latest)
        if word != shown:
            typer.echo(f"  {word}")
            shown = word
        state = latest.latest_call
        if state is None or state.state.status.is_final or asyncio.get_running_loop().time() > deadline:
            return latest
        await asyncio.sleep(every)
        latest = await _look(service, latest, state.call_number)


async def _look(service: VerificationService, verification: Verification, call_number: int) -> Verification:
    try:
        await service.follow(CallId(verification.id, call_number))
    except ProviderError:
        typer.echo("  (the provider does not say how the call goes)")
    try:
        return await service.read(client=_CLIENT, verification_id=verification.id)
    except VerificationNotFound:
        raise fail("The provider says that the call was never placed; nothing was counted.") from None


def _word(verification: Verification) -> str:
    latest = verification.latest_call
    if latest is None:
        return "not placed"
    return latest.state.provider_status or latest.state.status.replace("_", " ")


def _judge_call(verification: Verification) -> None:
    latest = verification.latest_call
    if latest is None or latest.state.status not in _HEARD:
        raise fail("The call was not answered, as far as is known.")


async def _hear(network: VirtualNetwork | None, verification: Verification) -> str | None:
    """Return what was heard: by whoever is at the terminal, or by the phone of the sandbox."""
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


async def _ask(service: VerificationService, verification: Verification, heard: str | None) -> None:
    if heard is None:
        _fail_unheard()
    try:
        code = normalize_code(heard)
    except ValueError as error:
        raise fail(f"That is no code: {error}.") from None
    result = await service.check_by_id(client=_CLIENT, verification_id=verification.id, code=code)
    if result.status is not Status.VERIFIED:
        raise fail("That is not the code that was to be spoken.")
    typer.echo("That is the code: calls arrive, and what is heard verifies.")


def _fail_unheard() -> NoReturn:
    raise fail("No code was heard.")
