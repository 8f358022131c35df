"""How the value of a setting is parsed and checked, as types for the fields of the sections.

The text of a ValueError is the message to the operator, after the name of the setting, so it never has the value.
"""

import json
import os
import re
import ssl
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, IPvAnyNetwork, PlainValidator, SecretStr
from redis.exceptions import RedisError

from app.api_keys import CLIENT_NAME
from app.standard_webhooks import parse_secret
from app.store.cluster import CLUSTER_URL, Cluster
from app.store.connection import connect_any
from app.store.sentinel import SENTINEL_URL
from app.tokens import read_keys
from app.verification.channels import Channel
from app.verification.errors import PhoneNotCallable
from app.verification.phone import Phone, parse_phone
from app.verification.stats import parse_zone
from app.verification.test_numbers import TestNumber

_MIN_SECRET_BYTES = 32
_API_KEY = re.compile(rf"({CLIENT_NAME.pattern}):([0-9a-f]{{64}})")
_TEST_NUMBER = re.compile(r"(\+?[0-9]+)=([0-9]{4,6})(?:@([0-9-]{10}))?")
_MAPPED_PREFIX = 96  # bits of an IPv4-mapped IPv6 address that come before the IPv4 address
_JSON = """CLIENTS='{"shop": {"calls_per_day": 200}}'"""
_ENCODED = "percent-encode the password: # is %23, @ %40, / %2F, ? %3F"
_REDIS_URL = re.compile(
    r"rediss?://([^@/?#\[\]\s]*@)?([^@/?#\[\]:\s]+|\[[0-9a-fA-F:.]+\])?(:[0-9]+)?(/[0-9]*)?(\?[^#@\s]*)?"
    r"|unix://([^@/?#\[\]\s]*@)?/[^@?#\s]*(\?[^#@\s]*)?"
)
_PROXY_URL = re.compile(r"http://(?:[^/@?#\s]+@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?/?", re.ASCII)
_LAST_PORT = 65535


class ApiKey(NamedTuple):
    """A client's name and the SHA-256 of one of its keys."""

    client: str
    digest: bytes


def _matches(pattern: str, message: str) -> AfterValidator:
    """Return a validator that accepts text, or a secret, that wholly matches a pattern."""

    def check(value: str | SecretStr) -> str | SecretStr:
        if not re.fullmatch(pattern, value if isinstance(value, str) else value.get_secret_value()):
            raise ValueError(message)
        return value

    return AfterValidator(check)


def _secret(parse: Callable[[str], object]) -> AfterValidator:
    """Return a validator that accepts a secret that ``parse`` accepts, which else raises a ValueError."""

    def check(value: SecretStr) -> SecretStr:
        parse(value.get_secret_value())
        return value

    return AfterValidator(check)


def _split(value: object) -> object:
    """Split a list at commas and line feeds: in a file, each item may have a line of its own."""
    if not isinstance(value, str):
        return value
    return [item.strip() for item in re.split(r"[,\n]", value) if item.strip()]


def _parse_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"is not valid JSON; it looks like {_JSON}") from None


def _check_secret_length(secret: str) -> None:
    if len(secret.encode()) < _MIN_SECRET_BYTES:
        raise ValueError("must have at least 32 bytes; `plusofon-verify keygen` makes one")


def _unmap(value: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return the IPv4 network of a network of IPv4-mapped IPv6 addresses (RFC 4291, section 2.5.5.2)."""
    if isinstance(value, IPv6Network) and value.prefixlen >= _MAPPED_PREFIX and value.network_address.ipv4_mapped:
        return IPv4Network((value.network_address.ipv4_mapped, value.prefixlen - _MAPPED_PREFIX))
    return value


def _parse_api_key(value: object) -> ApiKey:
    match = _API_KEY.fullmatch(str(value))
    if not match:
        raise ValueError("must be name:sha256-in-hex; `plusofon-verify keygen` makes one")
    return ApiKey(match[1], bytes.fromhex(match[2]))


def _check_redis_url(url: str) -> None:
    """Check a URL more strictly than redis-py, which reads ``redis://:12#34@host`` as port 12 of localhost."""
    if url.startswith(("redis+sentinel://", "rediss+sentinel://")):
        if not SENTINEL_URL.fullmatch(url):
            raise ValueError("must be like redis+sentinel://user:password@host:26379,host:26379/name/0; " + _ENCODED)
    elif url.startswith(("redis+cluster://", "rediss+cluster://")):
        if not CLUSTER_URL.fullmatch(url):
            raise ValueError("must be like redis+cluster://user:password@host:6379,host:6379; " + _ENCODED)
    elif not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError(
            "must begin with redis://, rediss:// or unix://, redis+sentinel:// or rediss+sentinel://,"
            " redis+cluster:// or rediss+cluster://"
        )
    elif not _REDIS_URL.fullmatch(url):
        raise ValueError("must be like redis://user:password@host:6379/0; " + _ENCODED)
    try:
        redis = connect_any(url, timeout=1)
        for client in redis.clients.values() if isinstance(redis, Cluster) else [redis]:
            client.connection_pool.make_connection()  # type: ignore[no-untyped-call] # connects to nothing yet
    except (ValueError, TypeError, RedisError):
        raise ValueError("has a port, or an option after ?, that is not valid") from None


def _parse_test_number(value: object) -> tuple[Phone, TestNumber]:
    """Parse ``phone=code@last-day``; the day is optional."""
    match = _TEST_NUMBER.fullmatch(str(value))
    try:
        phone, code, until = match.groups() if match else ("", "", None)
        return parse_phone(phone), TestNumber(code, date.fromisoformat(until) if until else None)
    except (ValueError, PhoneNotCallable):
        raise ValueError("must be phone=code@last-day, as in +79001234567=1234@2030-01-31") from None


def _parse_operator_channel(value: object) -> tuple[str, Channel]:
    operator, _, channel = str(value).partition(":")
    if not re.fullmatch(r"[a-z0-9 -]{1,64}", operator) or channel not in set(Channel):
        raise ValueError("must be operator:channel, as in mts:reverse_call")
    return operator, Channel(channel)


def _parse_channel_price(value: object) -> tuple[Channel, Decimal]:
    channel, _, price = str(value).partition(":")
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4})?", price) or channel not in set(Channel):
        raise ValueError("must be channel:price, as in flash_call:0.60, in RUB with at most four decimals")
    return Channel(channel), Decimal(price)


def _check_time_zone(name: str) -> str:
    parse_zone(name)
    return name


def _parse_relay_channel(value: object) -> Channel:
    """Parse the name of a channel with a code: a relay is sent one."""
    names = [channel.value for channel in Channel if channel.rules.has_code]
    if value not in names:
        raise ValueError(f"must be {' or '.join(names)}")
    return Channel(str(value))


def _check_proxy_url(url: str) -> None:
    match = _PROXY_URL.fullmatch(url)
    if not match or int(match[1] or 80) > _LAST_PORT:
        raise ValueError("must be http://host:port or http://user:password@host:port; percent-encode the password")


def _check_readable(value: Path) -> Path:
    # Path.is_file() would raise an error for a name that is too long.
    if not os.path.isfile(value) or not os.access(value, os.R_OK):  # noqa: PTH113
        raise ValueError("cannot be read")
    return value


def _check_certificates(value: Path) -> Path:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=value)
    except OSError:  # of the file, or of OpenSSL
        raise ValueError("must be a file with certificates in PEM that can be read") from None
    return value


CommaSeparated = BeforeValidator(_split)
AnyCase = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
FromJson = BeforeValidator(_parse_json)
_WithoutSlash = AfterValidator(lambda url: url.removesuffix("/"))

Count = Annotated[int, Field(ge=1, le=10_000_000)]
Timeout = Annotated[float, Field(gt=0, le=60)]  # seconds
Rub = Annotated[Decimal, Field(ge=0, le=10_000_000)]
# An IPv6 address may have the brackets that it has in a URL.
Host = Annotated[str, AfterValidator(lambda host: re.sub(r"^\[(.*)\]$", r"\1", host))]
Networks = Annotated[list[Annotated[IPvAnyNetwork, AfterValidator(_unmap)]], CommaSeparated]
ReadableFile = Annotated[Path, AfterValidator(_check_readable)]
CertificatesFile = Annotated[Path, AfterValidator(_check_certificates)]
ApiKeys = Annotated[list[Annotated[ApiKey, PlainValidator(_parse_api_key)]], CommaSeparated]
SecretKey = Annotated[SecretStr, _secret(_check_secret_length)]
WebhookSecret = Annotated[SecretStr, _secret(parse_secret)]
TokenKeys = Annotated[SecretStr, _secret(read_keys)]
# A line feed from a file of secrets is the usual mistake.
HeaderToken = Annotated[SecretStr, _matches(r"[!-~]*", "must be printable ASCII without spaces")]
TestNumbers = Annotated[list[Annotated[tuple[Phone, TestNumber], PlainValidator(_parse_test_number)]], CommaSeparated]
RelayChannels = Annotated[list[Annotated[Channel, PlainValidator(_parse_relay_channel)]], CommaSeparated]
Price = Annotated[Decimal, Field(ge=0, le=1000, decimal_places=4)]  # RUB
TimeZone = Annotated[str, AfterValidator(_check_time_zone)]
ChannelPrices = Annotated[
    list[Annotated[tuple[Channel, Decimal], PlainValidator(_parse_channel_price)]], CommaSeparated
]
OperatorChannels = Annotated[
    list[Annotated[tuple[str, Channel], PlainValidator(_parse_operator_channel)]], CommaSeparated
]
Prefixes = Annotated[
    list[Annotated[str, _matches(r"\+7[0-9]{0,10}", "must be +7 and up to ten digits, as in +7940")]], CommaSeparated
]
Purpose = Annotated[
    str, _matches(r"[a-z][a-z0-9_]{0,31}", "must be a-z, 0-9 and _, begin with a letter, and have at most 32 of them")
]
UserId = Annotated[
    str, _matches(r"[!-~]{0,64}", "must be printable ASCII without spaces, and have at most 64 characters")
]
HttpsOrigin = Annotated[
    str, _WithoutSlash, _matches(r"https://[^/@\s?#]+", "must be https://host, without a path and a user name")
]
PublicUrl = Annotated[
    str,
    _WithoutSlash,
    _matches(
        r"https?://[^/@\s?#]+(/[A-Za-z0-9._~-]+)*",
        "must be https://host or https://host/path, without a user name; the path of letters, digits and . _ ~ -",
    ),
]
TracesUrl = Annotated[
    str, _matches(r"https?://[^@\s]+", "must be a URL such as http://127.0.0.1:4318/v1/traces, without a user name")
]
KeyPrefix = Annotated[
    str,
    _matches(r"[a-z][a-z_-]{0,31}", "must be a-z, _ and -, begin with a letter, and have at most 32 of them"),
]
RedisUrl = Annotated[SecretStr, _secret(_check_redis_url)]
RelayUrl = Annotated[
    SecretStr,
    _matches(
        r"https?://[^/@?#\s]+(/[^@?#\s]*)?",
        "must be https://host/path, or http:// on localhost in sandbox mode; without a user name and a query",
    ),
]
ProxyUrl = Annotated[SecretStr, _secret(_check_proxy_url)]
