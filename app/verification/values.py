"""Value objects for the way of each request: the type checker holds them frozen, and Python makes them fast.

A dataclass that Python freezes sets each of its fields through ``object.__setattr__``, and takes twice as long to make.
"""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[_T]) -> type[_T]:
    """Make a class of slotted, comparable, hashable objects of its fields, which nobody may assign to."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
