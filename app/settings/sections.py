"""The sections of the settings, with their defaults: ``REDIS_URL`` is ``url`` of ``RedisSettings``."""

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from app.settings.fields import (
    AnyCase,
    ApiKey,
    CommaSeparated,
    Count,
    FixedCodeSetting,
    HttpsOrigin,
    Networks,
    Prefix,
    Purpose,
    SecretKey,
    Timeout,
    TracesUrl,
    UserId,
    fits_a_header,
    is_redis_url,
    is_token_keys,
    is_webhook_secret,
    parse_api_key,
    parse_test_number,
)
from app.settings.webhooks import WebhookFields
from app.verification.channels import Channel
from app.verification.code import MAX_LENGTH, MIN_LENGTH
from app.verification.fraud_guard import GuardRules


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True)


class PlusofonSettings(_Section):
    """The provider."""

    user_id: UserId = ""
    access_token: Annotated[SecretStr, AfterValidator(fits_a_header)] = SecretStr("")
    cabinet_token: Annotated[SecretStr, AfterValidator(fits_a_header)] | None = None
    base_url: HttpsOrigin = "https://restapi.plusofon.ru"
    phone_prefix: Literal["7", "8"] = "8"
    connect_timeout_seconds: Timeout = 3
    timeout_seconds: Timeout = 10
    max_connections: int = Field(100, ge=1, le=1000)
    circuit_failures: int = Field(5, ge=1, le=1000)
    circuit_seconds: int = Field(15, ge=1, le=3600)
    hook_addresses: Networks = []
    hook_delay_seconds: Annotated[float, Field(ge=0, le=60)] = 2

    @field_validator("timeout_seconds")
    @classmethod
    def _longer_than_connecting(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("connect_timeout_seconds", 0):
            raise PydanticCustomError("no_longer", "must be more than PLUSOFON_CONNECT_TIMEOUT_SECONDS")
        return value


def _is_relay_url(value: SecretStr) -> SecretStr:
    """Let an address through that calls can be named under."""
    if not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", value.get_secret_value()):
        raise PydanticCustomError(
            "relay_url",
            "must be https://host/path, or http:// on localhost in sandbox mode; without a user name and a query",
        )
    return value


class RelaySettings(_Section):
    """A URL of the operator's own that places the calls of the channels named here, in place of Plusofon."""

    url: Annotated[SecretStr, AfterValidator(_is_relay_url)] | None = None  # often it is itself what lets one in
    secret: Annotated[SecretStr, AfterValidator(is_webhook_secret)] | None = None
    channels: Annotated[list[Literal[Channel.VOICE, Channel.FLASH_CALL]], *CommaSeparated] = []
    connect_timeout_seconds: Timeout = 3
    timeout_seconds: Timeout = 10

    @field_validator("timeout_seconds")
    @classmethod
    def _longer_than_connecting(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("connect_timeout_seconds", 0):
            raise PydanticCustomError("no_longer", "must be more than RELAY_CONNECT_TIMEOUT_SECONDS")
        return value


class SecretSettings(_Section):
    """The key of all digests and those before it, and the key of names in Redis, which does not rotate."""

    key: SecretKey | None = None
    names_key: SecretKey | None = None
    previous_keys: Annotated[list[SecretKey], *CommaSeparated] = []


class ApiSettings(_Section):
    """Who may call."""

    keys: Annotated[list[Annotated[ApiKey, PlainValidator(parse_api_key)]], *CommaSeparated] = []


class AdminSettings(_Section):
    """Who may see and lift what the fraud guard blocked."""

    keys: Annotated[list[Annotated[ApiKey, PlainValidator(parse_api_key)]], *CommaSeparated] = []


class RedisSettings(_Section):
    """Where verifications are kept."""

    url: Annotated[SecretStr, AfterValidator(is_redis_url)] | None = None
    timeout_seconds: Timeout = 1


class TokenSettings(_Section):
    """The proof that a right check gives. The first of the keys signs, all of them verify."""

    keys: Annotated[SecretStr, AfterValidator(is_token_keys)] | None = None
    issuer: str = Field("plusofon-verify", min_length=1, max_length=255)
    lifetime_seconds: int = Field(600, ge=30, le=3600)


class CodeSettings(_Section):
    """The code that is spoken. The provider's limits: six digits, five minutes."""

    length: int = Field(6, ge=MIN_LENGTH, le=MAX_LENGTH)
    lifetime_seconds: int = Field(300, ge=30, le=300)
    repeat: int = Field(2, ge=1, le=5)


class CallSettings(_Section):
    """How often one phone is called, and what a call costs, for the statistics alone."""

    limit: int = Field(3, ge=1, le=10)
    price_rub: Annotated[Decimal, Field(ge=0, le=1000, decimal_places=2)] = Decimal(3)
    cooldowns_seconds: Annotated[
        list[Annotated[int, Field(ge=0, le=3600)]], *CommaSeparated, Field(min_length=1, max_length=10)
    ] = [60, 120, 300]


class CheckSettings(_Section):
    """How many guesses a verification has: by a code, and by one of four digits."""

    limit: int = Field(5, ge=1, le=10)
    flash_call_limit: int = Field(3, ge=1, le=10)


class PhoneSettings(_Section):
    """Which numbers are never called, beside those that are not Russian mobiles, and which the guard leaves alone."""

    denied_prefixes: Annotated[list[Prefix], *CommaSeparated] = ["+7940", "+7998"]
    allowed_prefixes: Annotated[list[Prefix], *CommaSeparated] = []


class LimitSettings(_Section):
    """How much is allowed beyond one verification. The period is part of the meaning of each."""

    calls_per_phone_hour: Count = 5
    calls_per_phone_day: Count = 10
    calls_per_address: Count = 10
    calls_per_range: Count = 30
    calls_per_client: Count = 600
    calls_per_day: Count = 1000
    failed_checks_per_phone: Count | None = None
    failed_checks_per_address: Count = 100
    failed_checks_per_client: Count = 1000
    test_starts_per_client: Count = 120


class GuardSettings(_Section):
    """When a range of numbers looks like artificial traffic."""

    enabled: bool = True
    min_calls: Count = 20
    min_conversion_percent: int = Field(10, ge=0, le=100)

    def rules(self, allowed_prefixes: Iterable[str]) -> GuardRules:
        """Make the rules of the guard."""
        return GuardRules(
            enabled=self.enabled,
            min_calls=self.min_calls,
            min_conversion=self.min_conversion_percent / 100,
            allowed_prefixes=tuple(allowed_prefixes),
        )


class EventsSettings(_Section):
    """Streams of events."""

    listeners: int = Field(1000, ge=1, le=100_000)


class TestSettings(_Section):
    """Numbers to which no call is placed and whose code is fixed."""

    numbers: Annotated[list[Annotated[FixedCodeSetting, PlainValidator(parse_test_number)]], *CommaSeparated] = []


class ClientSettings(WebhookFields):
    """What one client may do, where that differs from what everybody may, and where it is told of events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purposes: list[Purpose] | None = None
    channels: list[Channel] | None = None
    calls_per_minute: Count | None = None
    calls_per_day: Count | None = None
    failed_checks: Count | None = None


class MetricsSettings(_Section):
    """Who may read the metrics, beside those with a key of ``ADMIN_KEYS``: they show what was spent."""

    keys: Annotated[list[Annotated[ApiKey, PlainValidator(parse_api_key)]], *CommaSeparated] = []
    open: bool = False


class TracingSettings(_Section):
    """Where traces are sent, if anywhere."""

    endpoint: TracesUrl | None = None


class WatchSettings(_Section):
    """How calls are followed to their end. The bound is for all workers together."""

    per_second: int = Field(5, ge=1, le=100)


class LogSettings(_Section):
    """What is logged, and how: ``auto`` is colours in a terminal and JSON elsewhere."""

    level: Annotated[Literal["debug", "info", "warning", "error"], AnyCase] = "info"
    format: Annotated[Literal["auto", "json", "console"], AnyCase] = "auto"
