"""``client_ip`` is read in its usual spellings, and an address that is not public is not counted by rate limits."""

import logging
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import client_address
from app.api.client_address import count_address, read_address

V4, V6 = "203.0.113.7", "2001:db8::7"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (V4, V4),
        (f" {V4} ", V4),
        (f"{V4}:51234", V4),
        (f"[{V4}]", V4),
        (f"[{V4}]:443", V4),
        (V6, V6),
        (V6.upper(), V6),
        (f"[{V6}]", V6),
        (f"[{V6}]:51234", V6),
        (f"{V6}%eth0", V6),
        (f"[{V6}%eth0]:80", V6),
        ("fe80::1%25en0", "fe80::1"),
        (f"{V4}, 10.0.0.1", V4),
        (f"{V4},10.0.0.1,192.0.2.1", V4),
        (f"{V4}:1, 10.0.0.1:2", V4),
        (f"10.0.0.1, {V4}, 192.0.2.1", V4),
        (f"unknown, 127.0.0.1:80, nonsense, ::1, {V4}", V4),
        (f"{V4}, nonsense", V4),
        (f"[{V6}]:1, {V4}", V6),
        (f", {V4}", V4),
        (f"{V4}, unknown", V4),
        (f"{V4},", V4),
        (f"{V4}, \0", V4),
        (f"10.0.0.1, \ud800, {V4}", V4),
        (f"::ffff:{V4}", V4),
        (f"[::ffff:{V4}]:443", V4),
        ("::ffff:cb00:7107", V4),
        (f"64:ff9b::{V4}", V4),
        ("2002:cb00:7107::1", V4),
        ("::1", "::1"),
    ],
)
def test_an_address_is_read_in_all_common_spellings(text: str, address: str) -> None:
    assert read_address(text) == ip_address(address)


def test_unknown_in_a_proxy_chain_means_that_no_address_is_given() -> None:
    assert read_address("unknown") is None
    assert read_address("Unknown, 10.0.0.1") is None


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ",", "somewhere", "localhost", "256.1.1.1", "1.2.3", "1.2.3.4.5", "010.0.0.1", "1.2.3.4:", ":80"),
        *(
            "1.2.3.4:123456",
            "1.2.3.4:http",
            "[1.2.3.4",
            "1.2.3.4]",
            "[]",
            "[]:80",
            f"[{V6}]80",
            f"[{V6}]:",
            "1.2.3.4/24",
        ),
        *(
            f"{V6}/64",
            "1.2.3.4 5.6.7.8",
            "%eth0",
            "3232235777",
            "somewhere, 1.2.3.4",
            "for=1.2.3.4",
            "[[::1]]",
            "1.2.3.4:1:2",
        ),
        *("\u0661.2.3.4", "1.2.3.4\0"),
    ],
)
def test_text_that_is_not_an_address_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_address(text)


@given(st.text(max_size=60) | st.from_regex(r"[0-9a-f.:\[\]%, ]{0,60}", fullmatch=True))
def test_no_text_raises_anything_but_value_error(text: str) -> None:
    try:
        address = read_address(text)
    except ValueError:
        return
    count_address(address)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_an_address_is_the_same_in_every_spelling(address: object, port: int) -> None:
    plain = read_address(str(address))
    spellings = [f"[{address}]:{port}", f"[{address}]", f"{address}, 10.0.0.1"]

    assert [read_address(spelling) for spelling in spellings] == [plain] * 3


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.0.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("100.127.255.255", "private"),
        ("fd00::1", "private"),
        ("fec0::1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::192.168.0.1", "private"),
        ("2002:a00:1::", "private"),
        ("169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
    ],
)
def test_an_address_that_is_not_public_is_not_counted_and_is_logged_once(
    caplog: pytest.LogCaptureFixture, address: str, kind: str
) -> None:
    client_address._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert count_address(read_address(address)) is None

    assert [(record.message, record.__dict__["kind"]) for record in caplog.records] == [("client_ip.not_public", kind)]
    assert address not in caplog.text


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        (V4, V4),
        ("172.15.255.255", "172.15.255.255"),
        ("172.32.0.0", "172.32.0.0"),
        ("100.63.255.255", "100.63.255.255"),
        ("100.128.0.0", "100.128.0.0"),
        ("192.167.1.1", "192.167.1.1"),
        ("169.253.0.1", "169.253.0.1"),
        ("11.0.0.1", "11.0.0.1"),
        ("1.0.0.0", "1.0.0.0"),
        ("8.8.8.8", "8.8.8.8"),
        (V6, "2001:db8::/64"),
        ("2a02:6b8:0:1:2:3:4:5", "2a02:6b8:0:1::/64"),
        (f"::ffff:{V4}", V4),
        (f"64:ff9b::{V4}", V4),
    ],
)
def test_a_public_address_counts_as_itself_or_as_its_64_bit_prefix(address: str, counted: str) -> None:
    assert count_address(read_address(address)) == counted
