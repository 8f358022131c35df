"""Reads headers of a request from its bytes: an object for all of them costs more than a check needs of them."""

from starlette.types import Scope


def header_values(scope: Scope, name: bytes) -> list[str]:
    """Return the values of each header of that name, which is in lower case."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
