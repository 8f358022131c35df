"""Narrows the outcome of a check to the one that a test expects."""

from typing import TypeVar

_T = TypeVar("_T")


def expect(kind: type[_T], outcome: object) -> _T:
    assert isinstance(outcome, kind), outcome
    return outcome
