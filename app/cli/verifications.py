"""``verifications show``: one verification of any client."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from app.cli.common import AsJson, examples, fail, moment
from app.cli.stores import run_with_stores, settings_with_redis
from app.settings.policies import make_policies
from app.stores import Stores
from app.verification.errors import VerificationNotFound
from app.verification.model import Status, Verification
from app.verification.read import ReadVerification

_ID = "vrf_0a11b22c33d44e55f667788"

cli = typer.Typer(name="verifications", help="Look at single verifications.", no_args_is_help=True)


@cli.command(epilog=examples(f"verifications show {_ID}", f"verifications show {_ID} --json"))
def show(
    verification_id: Annotated[str, typer.Argument(metavar="ID", help=f"Such as {_ID}.")], *, as_json: AsJson = False
) -> None:
    """Show a verification: its status, calls, checks and times. The phone is masked, and there is no code to show."""
    settings = settings_with_redis()

    async def read(stores: Stores) -> Verification:
        read_verification = ReadVerification(stores.verifications, make_policies(settings))
        return await read_verification(client=None, verification_id=verification_id)

    try:
        found = run_with_stores(read, settings)
    except VerificationNotFound:
        raise fail("There is no such verification: it never was, or it expired.") from None
    typer.echo(json.dumps(_facts(found), indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(found)))


def _facts(found: Verification) -> dict[str, Any]:
    return {
        "verification_id": found.id,
        "status": found.status,
        "client": found.client,
        "purpose": found.purpose,
        "reference": found.reference,
        "consent": {"version": consent.version, "at": moment(consent.at)} if (consent := found.consent) else None,
        "phone": found.phone.masked,
        "channel": found.channel,
        "calls_left": found.calls_left,
        "checks_left": found.checks_left,
        "created_at": moment(found.created_at),
        "expires_at": moment(found.expires_at),
        "expires_in": found.expires_in,
        "resend_in": found.resend_in,
        "test": found.test,
        "calls": [
            {
                "call_number": call.call_number,
                "channel": call.channel,
                "status": call.state.status,
                "provider_status": call.state.provider_status,
                "dial": call.dial.e164 if call.dial else None,
                "expires_at": moment(call.expires_at) if call.expires_at else None,
            }
            for call in found.calls
        ],
    }


def _lines(found: Verification) -> Iterator[str]:
    resend = "no other call" if found.resend_in is None else f"another call in {found.resend_in} s"
    yield f"{found.id}   {found.status.upper()}{'   a test number: nobody was called' if found.test else ''}"
    yield f"phone     {found.phone.masked}"
    yield f"client    {found.client}, purpose {found.purpose}"
    if found.reference:
        yield f"reference {found.reference}"
    if found.consent:
        yield f"consent   {found.consent.version}, {found.consent.at:%Y-%m-%d %H:%M:%S} UTC"
    yield f"created   {found.created_at:%Y-%m-%d %H:%M:%S} UTC"
    yield f"expires   {found.expires_at:%Y-%m-%d %H:%M:%S} UTC, in {found.expires_in} s"
    if found.status is Status.PENDING:
        yield f"checks    {found.checks_left} left"
        yield f"calls     {found.calls_left} left, {resend}"
    for call in found.calls:
        word = f" (provider status: {call.state.provider_status})" if call.state.provider_status else ""
        yield f"  {call.call_number}  {call.channel:<13} {call.state.status}{word}"
