"""The phone that a command is about."""

from typing import Annotated

import typer

from app.api.problem_types import detail_of
from app.verification.errors import PhoneNotCallable
from app.verification.phone import Phone, parse_phone

PhoneArgument = Annotated[str, typer.Argument(metavar="PHONE", help="A Russian mobile number, however it is spelled.")]


def read_phone(text: str) -> Phone:
    """Return the phone of an argument. Raises BadParameter."""
    try:
        return parse_phone(text)
    except PhoneNotCallable as error:
        raise typer.BadParameter(detail_of(error)) from None
