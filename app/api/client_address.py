"""The end user's IP address: the spellings that are accepted, and its form for the limits per address."""

import logging
import re
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from socket import AF_INET, inet_pton
from typing import Annotated

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

_MAX_LENGTH = 1024  # characters: it may be a chain of proxies
_WITH_PORT = re.compile(r"\[(?P<bracketed>[^\]]*)\](?::[0-9]{1,5})?|(?P<v4>[0-9.]+):[0-9]{1,5}")
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052
# Which addresses are not public, and why. Not ``is_private``, which has the addresses of documentation and more.
_NOT_PUBLIC = {
    "unspecified": ("0.0.0.0/8", "::/128"),
    "loopback": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/10"),
    # 100.64.0.0/10 is inside a carrier (RFC 6598).
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10"),
}
# By version and as numbers, which are compared in a tenth of the time.
_RANGES = {
    version: [
        (kind, int(network.network_address), int(network.broadcast_address))
        for kind, networks in _NOT_PUBLIC.items()
        for network in map(ip_network, networks)
        if network.version == version
    ]
    for version in (4, 6)
}


def read_address(text: str) -> Address | None:
    """Parse an address as servers and proxies write it: alone, with a port, in brackets, with a zone, or in a chain.

    In a chain as of ``X-Forwarded-For`` the first address counts, the client's; if it is private or ``unknown``, the
    first public one. ``unknown`` alone is None. An IPv4 address inside an IPv6 one (mapped, 6to4, NAT64) is that IPv4
    address. Raises ValueError.
    """
    try:
        return IPv4Address(inet_pton(AF_INET, text))  # as most are; by C, in a fifth of the time of ip_address
    except (OSError, ValueError):  # the latter for NUL and surrogates
        pass
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
    address = ip_address(bare.partition("%")[0])  # a zone has no meaning here
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _validate(value: object) -> Address | None:
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= _MAX_LENGTH:
        try:
            return read_address(value)
        except ValueError:
            pass
    raise PydanticCustomError("client_ip", "must be an IPv4 or IPv6 address, as text")


ClientAddress = Annotated[
    Address | None,
    PlainValidator(_validate),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": _MAX_LENGTH}, {"type": "null"}]}),
    Field(
        description="the end user's IP address as your backend saw it, for the limits per address. A port, brackets and"
        " a zone are ignored; in a chain as of `X-Forwarded-For` the first public address counts. A private or loopback"
        " address is not limited",
        examples=["203.0.113.7"],
    ),
]


def count_address(address: Address | None) -> str | None:
    """Return the key of an address for the limits: itself, or the /64 of an IPv6 one.

    A /64 is the smallest network that a customer gets (RFC 6177). One with a /56 has 256 of them; to count by /56 would
    count neighbours together, and the limits by phone, range and day still hold. None if the address is not public: all
    end users of a backend that passes the address of its own proxy would share one limit.
    """
    if address is None:
        return None
    if kind := _not_public(address):
        _warn_once(kind)
        return None
    return str(address) if isinstance(address, IPv4Address) else str(ip_network((address, 64), strict=False))


def _not_public(address: Address) -> str:
    """Return why an address is not public; empty if it is."""
    number = int(address)
    for kind, first, last in _RANGES[address.version]:
        if first <= number <= last:
            return kind
    return ""


@cache
def _warn_once(kind: str) -> None:
    """Log once per process that addresses of a kind come as ``client_ip``: every request would repeat it."""
    log.warning("client_ip.not_public", extra={"kind": kind, "effect": "it is not limited by address"})
