"""The sections of the settings, with their defaults: ``REDIS_URL`` is ``url`` of ``RedisSettings``."""

import re
import ssl
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationInfo

from app.settings import validators
from app.store.layout import PREFIX
from app.verification.code import MAX_LENGTH, MIN_LENGTH
from app.verification.fraud_guard import GuardRules


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True)


class TlsSettings(_Section):
    """HTTPS served without a proxy in front."""

    cert_file: validators.ReadableFile | None = None
    key_file: validators.ReadableFile | None = None

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Return the mistakes that involve both fields, as the name of a field and a message."""
        if self.cert_file and self.key_file:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            try:
                # Without a password to try, OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password=lambda: "")
            except (ssl.SSLError, OSError):
                yield "cert_file", "must be a certificate in PEM, and TLS_KEY_FILE its private key without a password"
        elif self.cert_file:
            yield "key_file", "is missing, beside TLS_CERT_FILE"
        elif self.key_file:
            yield "cert_file", "is missing, beside TLS_KEY_FILE"


class OutboundSettings(_Section):
    """How requests to Plusofon, a relay and webhooks are sent."""

    proxy: validators.ProxyUrl | None = None
    ca_file: validators.CertificatesFile | None = None

    @property
    def proxy_url(self) -> str | None:
        """The URL of the proxy, with its password.

        aiohttp encodes user and password in Latin-1, while proxies, as curl and browsers, expect UTF-8 (RFC 7617). So
        each byte beyond ASCII is written as the character that Latin-1 has for it.
        """
        if self.proxy is None:
            return None
        url = re.sub("[^\x00-\x7f]", lambda character: quote(character[0]), self.proxy.get_secret_value())
        return re.sub("%([89A-Fa-f][0-9A-Fa-f])", lambda byte: quote(chr(int(byte[1], 16))), url)


def _exceeds_connect_timeout(section: str) -> AfterValidator:
    """Return a validator for ``timeout_seconds``; ``connect_timeout_seconds`` must come before it in its section."""

    def check(value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("connect_timeout_seconds", 0):
            raise ValueError(f"must be more than {section}_CONNECT_TIMEOUT_SECONDS")
        return value

    return AfterValidator(check)


class PlusofonSettings(_Section):
    """The provider."""

    user_id: validators.UserId = ""
    access_token: validators.HeaderToken = SecretStr("")
    cabinet_token: validators.HeaderToken | None = None
    base_url: validators.HttpsOrigin = "https://restapi.plusofon.ru"
    phone_prefix: Literal["7", "8"] = "8"
    connect_timeout_seconds: validators.Timeout = 3
    timeout_seconds: Annotated[validators.Timeout, _exceeds_connect_timeout("PLUSOFON")] = 10
    max_connections: int = Field(100, ge=1, le=1000)
    circuit_failures: int = Field(5, ge=1, le=1000)
    circuit_seconds: int = Field(15, ge=1, le=3600)
    hook_addresses: validators.Networks = []
    hook_delay_seconds: Annotated[float, Field(ge=0, le=60)] = 2


class RelaySettings(_Section):
    """The operator's own HTTP service, which places the calls of ``channels`` in place of Plusofon."""

    url: validators.RelayUrl | None = None  # secret, as its path often is the credential
    secret: validators.WebhookSecret | None = None
    channels: validators.RelayChannels = []
    connect_timeout_seconds: validators.Timeout = 3
    timeout_seconds: Annotated[validators.Timeout, _exceeds_connect_timeout("RELAY")] = 10


class SecretSettings(_Section):
    """The key of all digests and its predecessors, and the key of names in Redis, which does not rotate."""

    key: validators.SecretKey | None = None
    names_key: validators.SecretKey | None = None
    previous_keys: Annotated[list[validators.SecretKey], validators.CommaSeparated] = []


class ApiSettings(_Section):
    """API keys: ``API_KEYS`` of clients, and ``ADMIN_KEYS`` of operators."""

    keys: validators.ApiKeys = []


class RedisSettings(_Section):
    """Where verifications are stored."""

    url: validators.RedisUrl | None = None
    timeout_seconds: validators.Timeout = 1
    key_prefix: validators.KeyPrefix = PREFIX
    wait_replicas: int = Field(0, ge=0, le=9)


class TokenSettings(_Section):
    """The signed token that a correct code yields. The first key signs, all of them verify."""

    keys: validators.TokenKeys | None = None
    issuer: str = Field("plusofon-verify", min_length=1, max_length=255)
    lifetime_seconds: int = Field(600, ge=30, le=3600)


class CodeSettings(_Section):
    """The code that is spoken. The provider's limits: six digits, five minutes."""

    length: int = Field(6, ge=MIN_LENGTH, le=MAX_LENGTH)
    lifetime_seconds: int = Field(300, ge=30, le=300)
    repeat: int = Field(2, ge=1, le=5)


class CallSettings(_Section):
    """How often one phone is called. The prices are used for statistics only."""

    limit: int = Field(3, ge=1, le=10)
    price_rub: validators.Price = Decimal(3)
    prices_rub: validators.ChannelPrices = []
    unanswered_prices_rub: validators.ChannelPrices = []
    cooldowns_seconds: Annotated[
        list[Annotated[int, Field(ge=0, le=3600)]], validators.CommaSeparated, Field(min_length=1, max_length=10)
    ] = [60, 120, 300]


class StatsSettings(_Section):
    """The statistics: the time zone of their days."""

    timezone: validators.TimeZone = "UTC"


class CheckSettings(_Section):
    """The checks of a verification: of a spoken code, and of the four digits of a flash call."""

    limit: int = Field(5, ge=1, le=10)
    flash_call_limit: int = Field(3, ge=1, le=10)


class PhoneSettings(_Section):
    """Prefixes that are never called, and prefixes that the fraud guard ignores."""

    denied_prefixes: validators.Prefixes = ["+7940", "+7998"]
    allowed_prefixes: validators.Prefixes = []


class LimitSettings(_Section):
    """Rate limits; ``make_policies`` has the period of each."""

    calls_per_phone_hour: validators.Count = 5
    calls_per_phone_day: validators.Count = 10
    calls_per_address: validators.Count = 10
    calls_per_range: validators.Count = 30
    calls_per_client: validators.Count = 600
    calls_per_day: validators.Count = 1000
    failed_checks_per_phone: validators.Count | None = None
    failed_checks_per_address: validators.Count = 100
    failed_checks_per_client: validators.Count = 1000
    test_starts_per_client: validators.Count = 120


class GuardSettings(_Section):
    """When calls to a range of numbers are taken for artificial traffic."""

    enabled: bool = True
    min_calls: validators.Count = 20
    min_conversion_percent: int = Field(10, ge=0, le=100)

    def rules(self, allowed_prefixes: Iterable[str]) -> GuardRules:
        """Return the rules of the fraud guard."""
        return GuardRules(
            enabled=self.enabled,
            min_calls=self.min_calls,
            min_conversion=self.min_conversion_percent / 100,
            allowed_prefixes=tuple(allowed_prefixes),
        )


class MetricsSettings(ApiSettings):
    """Who may read the metrics, beside the holders of ``ADMIN_KEYS``: they show what was spent."""

    open: bool = False


class LogSettings(_Section):
    """What is logged, and how: ``auto`` is colours in a terminal and JSON elsewhere."""

    level: Annotated[Literal["debug", "info", "warning", "error"], validators.AnyCase] = "info"
    format: Annotated[Literal["auto", "json", "console"], validators.AnyCase] = "auto"


class JournalSettings(_Section):
    """How long attempts can be found; 0: there is no journal."""

    days: int = Field(30, ge=0, le=366)


class SandboxSettings(_Section):
    """The virtual telephone network: its account, the access token it accepts, and the seconds of a call's phase."""

    balance_rub: validators.Rub = Decimal(10_000)
    access_token: validators.HeaderToken | None = None
    pace_seconds: Annotated[float, Field(gt=0, le=60)] = 1
