"""Which addresses are public: webhooks go to no other, or they could reach the internal network (SSRF).

Registries: https://www.iana.org/assignments/iana-ipv4-special-registry and …/iana-ipv6-special-registry.
"""

import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any

_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is allocated
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the IPv4 address is its last 32 bits (RFC 6052)

# Besides those that the standard library knows, which differ between its versions.
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
    """Return whether ``text`` is an IP address of the public internet."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        embedded = IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else address.ipv4_mapped
        if embedded:
            return is_public(str(embedded))
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _SPECIAL)


def is_private(host: str) -> bool:
    """Return whether a host is, without asking the DNS, an address that is not public."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or ":" in host
    return not is_public(host)


def open_public_socket(address: tuple[int, int, int, str, tuple[Any, ...]]) -> socket.socket:
    """Make the socket for an ``address`` of ``socket.getaddrinfo``. Raises AddressNotAllowed if that is not public.

    Checked here, behind resolving and caching, so that the address that is checked is the one that is connected to: a
    name that resolves to another a moment later (DNS rebinding) gains nothing.
    """
    family, kind, protocol, _, where = address
    if family not in {socket.AF_INET, socket.AF_INET6} or not is_public(str(where[0])):
        raise AddressNotAllowed("the address is not public")
    return socket.socket(family, kind, protocol)
