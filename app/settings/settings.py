"""All settings together: what is missing or wrong is told at once, in sentences."""

import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cache, cached_property
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.settings.environment import EnvironmentSource, read_environment
from app.settings.error_messages import in_words, name_in, sentence
from app.settings.fields import (
    MIN_SECRET_BYTES,
    AnyCase,
    CommaSeparated,
    FromJson,
    PublicUrl,
    Purpose,
    Rub,
    parse_operator_channel,
    without_brackets,
)
from app.settings.names import Setting, names_of
from app.settings.sections import (
    AdminSettings,
    ApiSettings,
    CallSettings,
    CheckSettings,
    ClientSettings,
    CodeSettings,
    EventsSettings,
    GuardSettings,
    LimitSettings,
    LogSettings,
    MetricsSettings,
    PhoneSettings,
    PlusofonSettings,
    RedisSettings,
    RelaySettings,
    SecretSettings,
    TestSettings,
    TokenSettings,
    TracingSettings,
    WatchSettings,
)
from app.settings.serving import OutboundSettings, ProxySettings, SandboxSettings, TlsSettings
from app.tokens import generate_keys
from app.verification.channels import Channel


class Mode(StrEnum):
    """``production`` fails closed; ``sandbox`` needs nothing and calls nobody."""

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

OPEN_CLIENT = "sandbox"  # who calls in sandbox mode, where nobody has a key

# Sandbox mode lets in whoever comes, so it must not reach what places real calls.
_ON_THIS_MACHINE = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)")


class SettingsError(Exception):
    """The settings are wrong. ``sentences`` has one for each mistake, and no value in any."""

    def __init__(self, sentences: list[str]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = sentences


class Settings(BaseSettings):
    """All settings. The environment's ``PLUSOFON_USER_ID`` is ``plusofon.user_id`` here, and so on.

    Raises:
        ValidationError: on creation; ``load_settings`` turns it into sentences.

    """

    model_config = SettingsConfigDict(frozen=True)

    mode: Annotated[Mode, AnyCase] = Mode.PRODUCTION
    host: Annotated[str, AfterValidator(without_brackets)] = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    workers: int = Field(1, ge=1, le=64)
    keep_alive_seconds: int = Field(75, ge=1, le=3600)
    purposes: Annotated[list[Purpose], *CommaSeparated, Field(min_length=1)] = [
        "phone_verification",
        "password_reset",
        "login",
    ]
    public_url: PublicUrl | None = None
    channels: Annotated[list[Channel], *CommaSeparated, Field(min_length=1)] | None = None
    operator_channels: Annotated[
        list[Annotated[tuple[str, Channel], PlainValidator(parse_operator_channel)]], *CommaSeparated
    ] = []
    min_balance_rub: Rub = Decimal(10)
    warn_balance_rub: Rub = Decimal(100)
    tls: TlsSettings = TlsSettings()
    proxy: ProxySettings = ProxySettings()
    outbound: OutboundSettings = OutboundSettings()
    plusofon: PlusofonSettings = PlusofonSettings()
    relay: RelaySettings = RelaySettings()
    secret: SecretSettings = SecretSettings()
    api: ApiSettings = ApiSettings()
    admin: AdminSettings = AdminSettings()
    redis: RedisSettings = RedisSettings()
    token: TokenSettings = TokenSettings()
    code: CodeSettings = CodeSettings()
    call: CallSettings = CallSettings()
    check: CheckSettings = CheckSettings()
    phone: PhoneSettings = PhoneSettings()
    limit: LimitSettings = LimitSettings()
    guard: GuardSettings = GuardSettings()
    events: EventsSettings = EventsSettings()
    test: TestSettings = TestSettings()
    watch: WatchSettings = WatchSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    sandbox: SandboxSettings = SandboxSettings()
    clients: Annotated[dict[str, ClientSettings], FromJson] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - reads names that are no settings
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read what is given on creation, then the environment by the rules of this service."""
        return init_settings, EnvironmentSource(settings_cls, setting_names())

    @model_validator(mode="wrap")
    @classmethod
    def _fail_closed(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - unvalidated
        """Return what is missing together with what is wrong, so that one look is enough."""
        mistakes = list(_mode_mistakes(data))
        try:
            settings = handler(data)
        except ValidationError as error:
            mistakes += [_mistake(found["loc"], in_words(found)) for found in error.errors(include_url=False)]
        else:
            mistakes += settings.contradictions()
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, mistakes, hide_input=True)
        return settings

    def contradictions(self) -> Iterator[InitErrorDetails]:
        """Find what is right alone and wrong together."""
        if self.warn_balance_rub < self.min_balance_rub:
            yield _mistake(("warn_balance_rub",), "must be at least MIN_BALANCE_RUB")
        yield from self._contradictions_of_serving()
        yield from self._contradictions_of_clients()
        is_public = self.public_url is not None and self.public_url.startswith("https://")
        if self.mode is Mode.PRODUCTION and not is_public and not all(it.rules.has_code for it in self.used_channels):
            yield _mistake(("public_url",), "must be https://…, for the provider tells there of reverse calls")
        yield from self._contradictions_of_the_relay()
        if self.mode is Mode.PRODUCTION:
            today = datetime.now(UTC).date()
            for place, (_, fixed) in enumerate(self.test.numbers):
                if fixed.until is None or fixed.until < today:
                    yield _mistake(("test", "numbers", place), "needs a last day that has not passed, in production")

    def _contradictions_of_serving(self) -> Iterator[InitErrorDetails]:
        if self.mode is Mode.SANDBOX and self.workers > 1:
            yield _mistake(("workers",), "must be 1 in sandbox mode, whose telephone network lives in one process")
        for field, message in self.tls.contradictions():
            yield _mistake(("tls", field), message)

    def _contradictions_of_clients(self) -> Iterator[InitErrorDetails]:
        with_keys = {key.client for key in self.api.keys}
        if self.mode is Mode.PRODUCTION and "keys" in self.api.model_fields_set and not with_keys:  # only commas
            yield _mistake(("api", "keys"), "must have at least 1 in its list")
        for name, client in self.clients.items():
            if with_keys and name not in with_keys:
                yield _mistake(("clients", name), "has no key in API_KEYS")
            elif not with_keys and self.mode is Mode.SANDBOX and name != OPEN_CLIENT:
                yield _mistake(("clients", name), f'is nobody: without API_KEYS every caller is "{OPEN_CLIENT}"')
            for field, message in client.webhook_contradictions(production=self.mode is Mode.PRODUCTION):
                yield _mistake(("clients", name, field), message)

    def _contradictions_of_the_relay(self) -> Iterator[InitErrorDetails]:
        if not self.relay.channels:
            return
        if not self.relay.secret:
            yield _mistake(("relay", "secret"), "is missing: RELAY_CHANNELS names what goes to a relay")
        if not self.relay.url:
            yield _mistake(("relay", "url"), "is missing: RELAY_CHANNELS names what goes to a relay")
        elif self.mode is Mode.PRODUCTION and not self.relay.url.get_secret_value().startswith("https://"):
            yield _mistake(("relay", "url"), "must begin with https:// in production, for codes go there")
        elif self.mode is Mode.SANDBOX and not _ON_THIS_MACHINE.match(self.relay.url.get_secret_value()):
            yield _mistake(("relay", "url"), "must be on localhost in sandbox mode, where nobody is called")

    @property
    def enabled_channels(self) -> tuple[Channel, ...]:
        """The channels that may be used, in order: only the voice if none are named, and in sandbox mode all."""
        if self.channels is None:
            return tuple(Channel) if self.mode is Mode.SANDBOX else (Channel.VOICE,)
        return tuple(dict.fromkeys(self.channels))

    @property
    def used_channels(self) -> set[Channel]:
        """The channels that anybody may use."""
        own = (channel for client in self.clients.values() for channel in client.channels or ())
        return {*self.enabled_channels, *own}

    @property
    def listen_url(self) -> str:
        """The URL of the address that the service listens on."""
        return self._url_of(self.host)

    @property
    def reachable_url(self) -> str:
        """The URL by which others reach this service; from this machine alone, unless PUBLIC_URL is set."""
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
        return self.public_url or self._url_of(loopback.get(self.host, self.host))

    def _url_of(self, host: str) -> str:
        scheme = "https" if self.tls.cert_file else "http"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    @property
    def path_prefix(self) -> str:
        """The path of ``PUBLIC_URL``, which a proxy strips before it passes a request on: empty, or ``/a/path``."""
        return urlsplit(self.public_url or "").path

    @property
    def names_secret(self) -> bytes:
        """The secret under which things are named in Redis; without one of its own, the oldest secret key."""
        return self.secret.names_key.get_secret_value().encode() if self.secret.names_key else self.secret_keys[-1]

    @property
    def patience(self) -> timedelta:
        """How long the slowest of the providers may take to place a call."""
        relay = self.relay.timeout_seconds if self.relay.channels else 0
        return timedelta(seconds=max(self.plusofon.timeout_seconds, relay))

    @property
    def longest_request(self) -> timedelta:
        """How long a request may take: the provider's whole budget, and Redis before and after it."""
        return self.patience + timedelta(seconds=2 * self.redis.timeout_seconds)

    @cached_property
    def secret_keys(self) -> list[bytes]:
        """The secret keys, newest first; in sandbox mode without one, a key that lives as long as the process."""
        if self.secret.key is None:
            self.require_sandbox("SECRET_KEY")
        newest = self.secret.key.get_secret_value() if self.secret.key else secrets.token_hex(MIN_SECRET_BYTES)
        return [newest.encode(), *(key.get_secret_value().encode() for key in self.secret.previous_keys)]

    @cached_property
    def token_keys(self) -> str:
        """The keys of tokens, as JSON; in sandbox mode without any, a key that lives as long as the process."""
        if self.token.keys is None:
            self.require_sandbox("TOKEN_KEYS")
        return self.token.keys.get_secret_value() if self.token.keys else generate_keys()

    def require_sandbox(self, setting: str) -> None:
        """Refuse to go on without a required setting, outside sandbox mode; called by whatever has a fallback for it.

        Validation has refused such settings already. This holds even where they were made in another way.

        Raises:
            SettingsError: the mode is production.

        """
        if self.mode is not Mode.SANDBOX:
            raise SettingsError([f"{setting} is missing: {_REQUIRED_IN_PRODUCTION[setting]}."])


@cache
def setting_names() -> Mapping[str, Setting]:
    """Return all settings by their names in the environment."""
    return names_of(Settings)


def load_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - fields of the settings
    """Read the settings; ``overrides`` come before the environment, which comes before ``.env``.

    Raises:
        SettingsError: something is missing or wrong.

    """
    names = setting_names()
    environment = read_environment(names)
    if environment.mistakes:  # what else is wrong or missing may stand in lines that could not be read
        raise SettingsError(environment.mistakes)
    sentences = list(environment.unreadable.values())
    display_name = {name: given.display_name for name, given in environment.values.items()}
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        sentences += [
            sentence(found["loc"], found["msg"], display_name)
            for found in error.errors()
            if name_in(found["loc"], names) not in environment.unreadable  # it is missing for that reason
        ]
    if sentences:
        raise SettingsError(sentences)
    return settings


def _mode_mistakes(data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    mode = str(data.get("mode", Mode.PRODUCTION)).lower()
    if mode == Mode.PRODUCTION:
        for name, meaning in _REQUIRED_IN_PRODUCTION.items():
            section, field = setting_names()[name].path
            if not data.get(section, {}).get(field):
                yield _mistake((section, field), f"is missing: {meaning}")
    elif mode == Mode.SANDBOX and "base_url" in data.get("plusofon", {}):
        yield _mistake(("plusofon", "base_url"), "must be left out in sandbox mode, which brings its own provider")


def _mistake(location: tuple[int | str, ...], message: str) -> InitErrorDetails:
    # The message is a value of the error, not its template: it may contain braces.
    return InitErrorDetails(
        type=PydanticCustomError("mistake", "{message}", {"message": message}), loc=location, input=None
    )
