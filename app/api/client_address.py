"""The end user's address: how callers write it, and what it counts as for the limits per address."""

import logging
import re
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Annotated

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

_MAX_LENGTH = 1024  # characters; of a chain of proxies
_WITH_PORT = re.compile(r"\[(?P<bracketed>[^\]]*)\](?::[0-9]{1,5})?|(?P<v4>[0-9.]+):[0-9]{1,5}")
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052
# Not ``is_private``, which has the addresses of documentation and more. 100.64.0.0/10 is inside a carrier (RFC 6598).
_PRIVATE = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10"))
)
_THIS_NETWORK = ip_network("0.0.0.0/8")


def read_address(text: str) -> Address | None:
    """Read an address as servers and proxies write it: alone, with a port, in brackets, with a zone, or in a chain.

    Of a chain the first address counts, as in ``X-Forwarded-For``: the client's; where that is private or the word
    ``unknown``, the first public one. ``unknown`` alone reads as None. An IPv4 address inside an IPv6 one (mapped,
    6to4, NAT64) is that IPv4 address.

    Raises:
        ValueError: it is no address.

    """
    first, *further = [part for part in map(str.strip, text.split(",")) if part] or [""]
    address = _read_one(first)
    for part in further:
        if address and not _not_public(address):
            break
        with suppress(ValueError):
            other = _read_one(part)
            address = other if other and not _not_public(other) else address
    return address


def _read_one(text: str) -> Address | None:
    if text.lower() == "unknown":
        return None
    written = _WITH_PORT.fullmatch(text)
    bare = (written["bracketed"] or written["v4"] or "") if written else text
    address = ip_address(bare.partition("%")[0])
    return (_embedded(address) or address) if isinstance(address, IPv6Address) else address


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _validate(value: object) -> Address | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) and len(value) <= _MAX_LENGTH:
            return read_address(value)
    except ValueError:
        pass
    raise PydanticCustomError("client_ip", "must be an IPv4 or IPv6 address, as text")


ClientAddress = Annotated[
    Address | None,
    PlainValidator(_validate),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": _MAX_LENGTH}, {"type": "null"}]}),
    Field(
        description="the end user's address as your backend saw it, for the limits per address. A port, brackets and a"
        " zone are ignored; of a chain as in `X-Forwarded-For` the first public address counts. A private or loopback"
        " one is no end user's and is not limited",
        examples=["203.0.113.7"],
    ),
]


def count_address(address: Address | None) -> str | None:
    """Return what an address counts as: itself, or its /64, the least that an IPv6 customer has (RFC 6177).

    Who has a /56 has 256 of them; to count by that would count others' neighbours together, and the limits over the
    phone, its range and the day hold all the same. None where it is no end user's: a backend that passes the address of
    its own proxy would else share one limit among all of its people.
    """
    if address is None:
        return None
    if kind := _not_public(address):
        _warn_once(kind)
        return None
    return str(address) if isinstance(address, IPv4Address) else str(ip_network((address, 64), strict=False))


def _not_public(address: Address) -> str:
    """Return why an address cannot be an end user's; empty where it can."""
    if address.is_unspecified or address in _THIS_NETWORK:
        return "unspecified"
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return "private" if any(address in network for network in _PRIVATE) else ""


@cache
def _warn_once(kind: str) -> None:
    """Log that addresses of a kind come as ``client_ip``; once in each process, for every request would say it."""
    log.warning("client_ip.not_public", extra={"kind": kind, "effect": "it is not limited by address"})
