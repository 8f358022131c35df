"""Which addresses are of the public internet: a webhook is sent to no other, or it could reach what stands behind us.

Registries: https://www.iana.org/assignments/iana-ipv4-special-registry and …/iana-ipv6-special-registry.
"""

import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address

from aiohttp import AddrInfoType

_UNICAST = ipaddress.ip_network("2000::/3")  # all that is given out of IPv6
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the IPv4 address is its last 32 bits (RFC 6052)

# Beside those that the standard library knows; what it knows differs between its versions.
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carriers' NAT
        "168.63.129.16/32",  # Azure's own services, seen from its machines alone
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # protocol assignments, Teredo among them: it carries an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: it carries an IPv4 address
        "3fff::/20",  # documentation
    )
)


class AddressNotAllowed(OSError):
    """A host led to an address that is not public."""


def is_public(text: str) -> bool:
    """Return whether an IP address is one of the public internet; what is no address is not."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        inner = _inside(address)
        if inner:
            return is_public(str(inner))
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _SPECIAL)


def is_private(host: str) -> bool:
    """Return whether a host, by itself and without a look at the DNS, is an address that is not public."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or ":" in host
    return not is_public(host)


def open_public_socket(address: AddrInfoType) -> socket.socket:
    """Make the socket that will be connected to ``address``, if that is public.

    The check stands here, behind resolving and caching, so that the address that is checked is the one that is
    connected to: a name that leads elsewhere a moment later (DNS rebinding) gains nothing.

    Raises:
        AddressNotAllowed: it is not.

    """
    family, kind, protocol, _, where = address
    if family not in {socket.AF_INET, socket.AF_INET6} or not is_public(str(where[0])):
        raise AddressNotAllowed("the address is not public")
    return socket.socket(family, kind, protocol)


def _inside(address: IPv6Address) -> IPv4Address | None:
    """Find the IPv4 address that an IPv6 address really leads to."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped
