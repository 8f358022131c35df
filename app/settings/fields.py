"""How single settings are written in the environment, and what is wrong with them if they are not."""

import json
import re
from datetime import date
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, IPvAnyNetwork, SecretStr
from pydantic_core import PydanticCustomError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.standard_webhooks import parse_secret
from app.tokens import TokenSigner
from app.verification.channels import Channel
from app.verification.errors import PhoneNotCallable
from app.verification.fixed_codes import FixedCode
from app.verification.phone import Phone, parse_phone

CLIENT_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_API_KEY = re.compile(rf"({CLIENT_NAME.pattern}):([0-9a-f]{{64}})")
_TEST_NUMBER = re.compile(r"(\+?[0-9]+)=([0-9]{4,6})(?:@([0-9-]{10}))?")
MIN_SECRET_BYTES = 32
_MAPPED_PREFIX = 96  # bits of an IPv4-mapped IPv6 address that come before the IPv4 address
_JSON = """CLIENTS='{"shop": {"calls_per_day": 200}}'"""
_ENCODED = "percent-encode the password: # is %23, @ %40, / %2F, ? %3F"
_REDIS_URL = re.compile(
    r"rediss?://([^@/?#\[\]\s]*@)?([^@/?#\[\]:\s]+|\[[0-9a-fA-F:.]+\])?(:[0-9]+)?(/[0-9]*)?(\?[^#@\s]*)?"
    r"|unix://([^@/?#\[\]\s]*@)?/[^@?#\s]*(\?[^#@\s]*)?"
)


class ApiKey(NamedTuple):
    """A client's name and the SHA-256 of one of its keys."""

    client: str
    digest: bytes


class FixedCodeSetting(NamedTuple):
    """A phone and its fixed code."""

    phone: Phone
    fixed_code: FixedCode


def _split(value: object) -> object:
    """Split a list at its commas; in a file each item may as well have a line of its own."""
    if not isinstance(value, str):
        return value
    return [item.strip() for item in re.split(r"[,\n]", value) if item.strip()]


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _from_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise PydanticCustomError("json", "is not valid JSON; it looks like {example}", {"example": _JSON}) from None


def _long_enough(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
        raise PydanticCustomError("short", "must have at least 32 bytes; `plusofon-verify keygen` makes one")
    return value


def _spelled(pattern: str, words: str) -> AfterValidator:
    """Let a text through that is wholly of a pattern; else ``words`` say what it must be."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise PydanticCustomError("spelling", "{words}", {"words": words})
        return value

    return AfterValidator(check)


def _without_slash(value: str) -> str:
    """Take the slash from the end of a URL, which means the same with it."""
    return value.removesuffix("/")


def without_brackets(value: str) -> str:
    """Return an address without the brackets that an IPv6 address has in a URL."""
    return value[1:-1] if value.startswith("[") and value.endswith("]") else value


def _unmapped(value: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return the IPv4 network that one of IPv4-mapped IPv6 addresses stands for (RFC 4291, section 2.5.5.2)."""
    if isinstance(value, IPv6Network) and value.prefixlen >= _MAPPED_PREFIX and value.network_address.ipv4_mapped:
        return IPv4Network((value.network_address.ipv4_mapped, value.prefixlen - _MAPPED_PREFIX))
    return value


def parse_api_key(value: object) -> ApiKey:
    """Read ``name:sha256-in-hex``."""
    match = _API_KEY.fullmatch(str(value))
    if not match:
        raise PydanticCustomError("api_key", "must be name:sha256-in-hex; `plusofon-verify keygen` makes one")
    return ApiKey(match[1], bytes.fromhex(match[2]))


def fits_a_header(value: SecretStr) -> SecretStr:
    """Let a token through that can stand in a header: a line feed from a file of secrets is the usual mistake."""
    if not re.fullmatch(r"[!-~]*", value.get_secret_value()):
        raise PydanticCustomError("header", "must be printable ASCII without spaces")
    return value


def is_redis_url(value: SecretStr) -> SecretStr:
    """Let a URL of Redis through.

    Stricter than the library, which reads ``redis://:12#34@host`` as port 12 of this machine.
    """
    url = value.get_secret_value()
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise PydanticCustomError("redis_url", "must begin with redis://, rediss:// or unix://")
    if not _REDIS_URL.fullmatch(url):
        raise PydanticCustomError("redis_url", "must be like redis://user:password@host:6379/0; " + _ENCODED)
    try:
        Redis.from_url(url).connection_pool.make_connection()  # type: ignore[no-untyped-call] # connects to nothing yet
    except (ValueError, TypeError, RedisError):
        raise PydanticCustomError("redis_url", "has a port, or an option after ?, that is not valid") from None
    return value


def parse_test_number(value: object) -> FixedCodeSetting:
    """Read ``phone=code@last-day``; the day may be left out."""
    match = _TEST_NUMBER.fullmatch(str(value))
    mistake = PydanticCustomError("test_number", "must be phone=code@last-day, as in +79001234567=1234@2030-01-31")
    if not match:
        raise mistake
    phone, code, until = match.groups()
    try:
        return FixedCodeSetting(parse_phone(phone), FixedCode(code, date.fromisoformat(until) if until else None))
    except (ValueError, PhoneNotCallable):
        raise mistake from None


def parse_operator_channel(value: object) -> tuple[str, Channel]:
    """Read ``operator:channel``."""
    operator, _, channel = str(value).partition(":")
    if not re.fullmatch(r"[a-z0-9 -]{1,64}", operator) or channel not in set(Channel):
        raise PydanticCustomError("operator_channel", "must be operator:channel, as in mts:reverse_call")
    return operator, Channel(channel)


def is_webhook_secret(value: SecretStr) -> SecretStr:
    """Let a secret through that signs as Standard Webhooks says."""
    try:
        parse_secret(value.get_secret_value())
    except ValueError:
        raise PydanticCustomError("webhook_secret", "must be whsec_ and the base64 of 24 to 64 bytes") from None
    return value


def is_token_keys(value: SecretStr) -> SecretStr:
    """Let keys through that sign tokens."""
    try:
        TokenSigner(value.get_secret_value())
    except ValueError as error:
        raise PydanticCustomError("token_keys", "{message}", {"message": str(error)}) from None
    return value


AnyCase = BeforeValidator(_lower)
FromJson = BeforeValidator(_from_json)
Networks = Annotated[list[Annotated[IPvAnyNetwork, AfterValidator(_unmapped)]], BeforeValidator(_split)]
CommaSeparated = (BeforeValidator(_split),)
SecretKey = Annotated[SecretStr, AfterValidator(_long_enough)]
Prefix = Annotated[str, _spelled(r"\+7[0-9]{0,10}", "must be +7 and up to ten digits, as in +7940")]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Timeout = Annotated[float, Field(gt=0, le=60)]
Rub = Annotated[Decimal, Field(ge=0, le=10_000_000)]
Purpose = Annotated[
    str, _spelled(r"[a-z][a-z0-9_]{0,31}", "must be a-z, 0-9 and _, begin with a letter, and have at most 32 of them")
]
UserId = Annotated[
    str, _spelled(r"[!-~]{0,64}", "must be printable ASCII without spaces, and have at most 64 characters")
]
HttpsOrigin = Annotated[
    str,
    AfterValidator(_without_slash),
    _spelled(r"https://[^/@\s?#]+", "must be https://host, without a path and a user name"),
]
PublicUrl = Annotated[
    str,
    AfterValidator(_without_slash),
    _spelled(
        r"https?://[^/@\s?#]+(/[A-Za-z0-9._~-]+)*",
        "must be https://host or https://host/path, without a user name; the path of letters, digits and . _ ~ -",
    ),
]
TracesUrl = Annotated[
    str, _spelled(r"https?://[^@\s]+", "must be a URL such as http://127.0.0.1:4318/v1/traces, without a user name")
]
