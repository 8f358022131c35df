"""All settings: read, validated, and reported as one sentence per mistake."""

import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cache, cached_property
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from app.settings import sections, validators
from app.settings.clients import ClientSettings
from app.settings.environment import Setting, names_of, read_environment
from app.settings.error_messages import Location, Mistake, message_for, name_at, sentence
from app.settings_error import SettingsError
from app.tokens import generate_keys
from app.verification.channels import Channel


class Mode(StrEnum):
    """``production`` requires all secrets; ``sandbox`` requires no settings and places no real calls."""

    PRODUCTION = "production"
    SANDBOX = "sandbox"


_REQUIRED_IN_PRODUCTION = {
    "PLUSOFON_USER_ID": "the user id from Plusofon's cabinet",
    "PLUSOFON_ACCESS_TOKEN": "the access token of the Plusofon account",
    "SECRET_KEY": "the key of all digests, which `plusofon-verify keygen` makes",
    "API_KEYS": "who may call, as name:sha256 pairs, which `plusofon-verify keygen` makes",
    "REDIS_URL": "where Redis is, such as rediss://user:password@host:6380/0",
    "TOKEN_KEYS": "the keys that sign tokens, which `plusofon-verify keygen` makes",
}

OPEN_CLIENT = "sandbox"  # the client of every request in sandbox mode without API_KEYS

_SANDBOX_CHANNELS = (Channel.VOICE, Channel.FLASH_CALL, Channel.REVERSE_CALL)  # of its telephone network
# Sandbox mode may be open to everybody, so it must not reach a service that places real calls.
_LOCALHOST_URL = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)")


class Settings(BaseSettings):
    """All settings; ``plusofon.user_id`` is ``PLUSOFON_USER_ID`` in the environment.

    Creating them raises ValidationError, which ``load_settings`` turns into sentences.
    """

    model_config = SettingsConfigDict(frozen=True)

    mode: Annotated[Mode, validators.AnyCase] = Mode.PRODUCTION
    host: validators.Host = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    workers: int = Field(1, ge=1, le=64)
    keep_alive_seconds: int = Field(75, ge=1, le=3600)
    purposes: Annotated[list[validators.Purpose], validators.CommaSeparated, Field(min_length=1)] = [
        "phone_verification",
        "password_reset",
        "login",
    ]
    public_url: validators.PublicUrl | None = None
    channels: Annotated[list[Channel], validators.CommaSeparated, Field(min_length=1)] | None = None
    operator_channels: validators.OperatorChannels = []
    min_balance_rub: validators.Rub = Decimal(10)
    warn_balance_rub: validators.Rub = Decimal(100)
    proxy_addresses: validators.Networks = []
    events_listeners: int = Field(1000, ge=1, le=100_000)
    test_numbers: validators.TestNumbers = []
    watch_per_second: int = Field(5, ge=1, le=100)
    tracing_endpoint: validators.TracesUrl | None = None
    tls: sections.TlsSettings = sections.TlsSettings()
    outbound: sections.OutboundSettings = sections.OutboundSettings()
    plusofon: sections.PlusofonSettings = sections.PlusofonSettings()
    relay: sections.RelaySettings = sections.RelaySettings()
    secret: sections.SecretSettings = sections.SecretSettings()
    api: sections.ApiSettings = sections.ApiSettings()
    admin: sections.ApiSettings = sections.ApiSettings()
    redis: sections.RedisSettings = sections.RedisSettings()
    token: sections.TokenSettings = sections.TokenSettings()
    code: sections.CodeSettings = sections.CodeSettings()
    call: sections.CallSettings = sections.CallSettings()
    check: sections.CheckSettings = sections.CheckSettings()
    phone: sections.PhoneSettings = sections.PhoneSettings()
    limit: sections.LimitSettings = sections.LimitSettings()
    guard: sections.GuardSettings = sections.GuardSettings()
    stats: sections.StatsSettings = sections.StatsSettings()
    log: sections.LogSettings = sections.LogSettings()
    journal: sections.JournalSettings = sections.JournalSettings()
    metrics: sections.MetricsSettings = sections.MetricsSettings()
    sandbox: sections.SandboxSettings = sections.SandboxSettings()
    clients: Annotated[dict[str, ClientSettings], validators.FromJson] = {}

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: object, **__: object
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources: the arguments, then ``read_environment``; the library's would read unknown names too."""
        fields: dict[str, Any] = {}
        for name, given in read_environment(setting_names()).values.items():
            *section, field = setting_names()[name].path
            (fields.setdefault(section[0], {}) if section else fields)[field] = given.text
        return init_settings, InitSettingsSource(settings_cls, fields)

    @model_validator(mode="wrap")
    @classmethod
    def _fail_closed(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - unvalidated
        """Report what is missing and what is invalid together."""
        mistakes = list(_mode_mistakes(data))
        try:
            settings = handler(data)
        except ValidationError as error:
            mistakes += [(found["loc"], message_for(found)) for found in error.errors(include_url=False)]
        else:
            mistakes += settings.contradictions()
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, [_details(*it) for it in mistakes], hide_input=True)
        return settings

    def contradictions(self) -> Iterator[Mistake]:
        """Return the mistakes that involve several settings."""
        if self.warn_balance_rub < self.min_balance_rub:
            yield ("warn_balance_rub",), "must be at least MIN_BALANCE_RUB"
        if self.mode is Mode.SANDBOX and self.workers > 1:
            yield ("workers",), "must be 1 in sandbox mode, whose telephone network lives in one process"
        for field, message in self.tls.contradictions():
            yield ("tls", field), message
        yield from self._contradictions_of_clients()
        is_public = self.public_url is not None and self.public_url.startswith("https://")
        if self.mode is Mode.PRODUCTION and not is_public and not all(it.rules.has_code for it in self.used_channels):
            yield ("public_url",), "must be https://…, where the provider reports reverse calls"
        yield from self._contradictions_of_the_relay()
        if self.mode is Mode.PRODUCTION:
            today = datetime.now(UTC).date()
            for place, (_, fixed) in enumerate(self.test_numbers):
                if fixed.until is None or fixed.until < today:
                    yield ("test_numbers", place), "needs a last day that has not passed, in production"

    def _contradictions_of_clients(self) -> Iterator[Mistake]:
        with_keys = {key.client for key in self.api.keys}
        if self.mode is Mode.PRODUCTION and "keys" in self.api.model_fields_set and not with_keys:  # only commas
            yield ("api", "keys"), "must have at least 1 in its list"
        for name, client in self.clients.items():
            if with_keys and name not in with_keys:
                yield ("clients", name), "has no key in API_KEYS"
            elif not with_keys and self.mode is Mode.SANDBOX and name != OPEN_CLIENT:
                yield ("clients", name), f'is nobody: without API_KEYS every caller is "{OPEN_CLIENT}"'
            for field, message in client.contradictions(production=self.mode is Mode.PRODUCTION):
                yield ("clients", name, field), message

    def _contradictions_of_the_relay(self) -> Iterator[Mistake]:
        if not self.relay.channels:
            return
        if not self.relay.secret:
            yield ("relay", "secret"), "is missing: RELAY_CHANNELS names what goes to a relay"
        if not self.relay.url:
            yield ("relay", "url"), "is missing: RELAY_CHANNELS names what goes to a relay"
        elif self.mode is Mode.PRODUCTION and not self.relay.url.get_secret_value().startswith("https://"):
            yield ("relay", "url"), "must begin with https:// in production, for codes go there"
        elif self.mode is Mode.SANDBOX and not _LOCALHOST_URL.match(self.relay.url.get_secret_value()):
            yield ("relay", "url"), "must be on localhost in sandbox mode, where nobody is called"

    @property
    def enabled_channels(self) -> tuple[Channel, ...]:
        """The channels that may be used, in order; the default is voice, and all in sandbox mode."""
        if self.channels is None:
            return _SANDBOX_CHANNELS if self.mode is Mode.SANDBOX else (Channel.VOICE,)
        return tuple(dict.fromkeys(self.channels))

    @property
    def used_channels(self) -> set[Channel]:
        """All channels that any client may use."""
        own = (channel for client in self.clients.values() for channel in client.channels or ())
        return {*self.enabled_channels, *own}

    @property
    def reachable_url(self) -> str:
        """The URL by which others reach this service; without ``PUBLIC_URL``, from this machine only."""
        return self.public_url or self.local_url

    @property
    def local_url(self) -> str:
        """The URL by which this machine reaches this service."""
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
        return self.url_of(loopback.get(self.host, self.host))

    def url_of(self, host: str) -> str:
        """Return the URL of this service at an address of this machine."""
        scheme = "https" if self.tls.cert_file else "http"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    @property
    def path_prefix(self) -> str:
        """The path of ``PUBLIC_URL``, which a reverse proxy strips: empty, or ``/a/path``."""
        return urlsplit(self.public_url or "").path

    @property
    def names_secret(self) -> bytes:
        """The secret of names in Redis: ``SECRET_NAMES_KEY``, else the oldest secret key."""
        return self.secret.names_key.get_secret_value().encode() if self.secret.names_key else self.secret_keys[-1]

    @property
    def provider_timeout(self) -> timedelta:
        """The longest time that a provider may take to place a call."""
        relay = self.relay.timeout_seconds if self.relay.channels else 0
        return timedelta(seconds=max(self.plusofon.timeout_seconds, relay))

    @property
    def longest_request(self) -> timedelta:
        """The longest time of a request: a provider's timeout, and Redis before and after it."""
        return self.provider_timeout + timedelta(seconds=2 * self.redis.timeout_seconds)

    @cached_property
    def secret_keys(self) -> list[bytes]:
        """The secret keys, newest first; in sandbox mode the default is a random key, kept by this process alone."""
        if self.secret.key is None:
            self.require_sandbox("SECRET_KEY")
        newest = self.secret.key.get_secret_value() if self.secret.key else secrets.token_hex(32)
        return [newest.encode(), *(key.get_secret_value().encode() for key in self.secret.previous_keys)]

    @cached_property
    def token_keys(self) -> str:
        """The token keys, as JSON; in sandbox mode the default is a new key, kept by this process alone."""
        if self.token.keys is None:
            self.require_sandbox("TOKEN_KEYS")
        return self.token.keys.get_secret_value() if self.token.keys else generate_keys()

    def require_sandbox(self, setting: str) -> None:
        """Check the mode before a fallback of the sandbox is used, also for settings that were not validated.

        Raise SettingsError in production: ``setting`` is missing.
        """
        if self.mode is not Mode.SANDBOX:
            raise SettingsError([f"{setting} is missing: {_REQUIRED_IN_PRODUCTION[setting]}."])


@cache
def setting_names() -> Mapping[str, Setting]:
    """Return all settings by name in the environment."""
    return names_of(Settings)


def given_settings() -> Mapping[str, str]:
    """Return the text of each setting that is given, by name. Raise SettingsError as ``read_dotenv``."""
    return {name: given.text for name, given in read_environment(setting_names()).values.items()}


def may_look_for_sandbox() -> bool:
    """Return whether a command may take a running sandbox for the service that it is about.

    Never if it names a Redis, and unless MODE is sandbox, never if it names anything that production requires.
    """
    environment = read_environment(setting_names())
    names = {*environment.values, *environment.unreadable}
    if "REDIS_URL" in names or "MODE" in environment.unreadable:
        return False
    if "MODE" in names:
        return environment.values["MODE"].text.lower() == Mode.SANDBOX
    return not names & _REQUIRED_IN_PRODUCTION.keys()


def load_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - fields of the settings
    """Return the settings; ``overrides`` take precedence over the environment, and that over ``.env``.

    Raise SettingsError with all that is missing or wrong.
    """
    environment = read_environment(setting_names())
    sentences = list(environment.unreadable.values())
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        sentences += [
            sentence((found["loc"], found["msg"]), environment.values)
            for found in error.errors()
            if name_at(found["loc"]) not in environment.unreadable  # which is why it is missing
        ]
    if sentences:
        raise SettingsError(sentences)
    return settings


def _mode_mistakes(fields: Mapping[str, Any]) -> Iterator[Mistake]:
    mode = str(fields.get("mode", Mode.PRODUCTION)).lower()
    if mode == Mode.PRODUCTION:
        for name, meaning in _REQUIRED_IN_PRODUCTION.items():
            section, field = setting_names()[name].path
            if not fields.get(section, {}).get(field):
                yield (section, field), f"is missing: {meaning}"
    elif mode == Mode.SANDBOX and "base_url" in fields.get("plusofon", {}):
        yield ("plusofon", "base_url"), "must be left out in sandbox mode, which brings its own provider"


def _details(location: Location, message: str) -> InitErrorDetails:
    # The message is not the template itself, because it may contain braces.
    return InitErrorDetails(
        type=PydanticCustomError("mistake", "{message}", {"message": message}), loc=location, input=None
    )
