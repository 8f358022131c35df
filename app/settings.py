"""The settings: read from the environment and ``.env``, checked at start, told as one sentence per mistake."""

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    ModelWrapValidatorHandler,
    PlainValidator,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableSetting

from app.tokens import TokenSigner, generate_keys
from app.verification.code import MAX_LENGTH, MIN_LENGTH
from app.verification.errors import PhoneNotCallable
from app.verification.fixed_codes import FixedCode
from app.verification.guard import GuardRules
from app.verification.model import Channel
from app.verification.phone import Phone, parse_phone
from app.verification.policy import DAY, HOUR, Limit, Policy
from app.verification.service import Policies

CLIENT_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_API_KEY = re.compile(rf"({CLIENT_NAME.pattern}):([0-9a-f]{{64}})")
_TEST_NUMBER = re.compile(r"(\+?[0-9]+)=([0-9]{4,6})(?:@([0-9-]{10}))?")
_MIN_SECRET_BYTES = 32
_FAILED_CHECKS_A_DAY = {4: 15, 5: 30, 6: 50}  # by the length of a code: below 0.2 % of luck in a day


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
    "TOKEN_KEYS": "the keys that sign tokens, or TOKEN_KEYS_FILE; `plusofon-verify keygen` makes one",
}


class SettingsError(Exception):
    """The settings are wrong. ``sentences`` has one for each mistake, and no value in any."""

    def __init__(self, sentences: list[str]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = sentences


class ApiKey(NamedTuple):
    """A client's name and the SHA-256 of one of its keys."""

    client: str
    digest: bytes


class FixedCodeSetting(NamedTuple):
    """A phone and its fixed code."""

    phone: Phone
    fixed_code: FixedCode


def _split(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _long_enough(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().encode()) < _MIN_SECRET_BYTES:
        raise PydanticCustomError("short", "must have at least 32 bytes; `plusofon-verify keygen` makes one")
    return value


def _parse_api_key(value: object) -> ApiKey:
    match = _API_KEY.fullmatch(str(value))
    if not match:
        raise PydanticCustomError("api_key", "must be name:sha256-in-hex; `plusofon-verify keygen` makes one")
    return ApiKey(match[1], bytes.fromhex(match[2]))


def _is_redis_url(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise PydanticCustomError("redis_url", "must begin with redis://, rediss:// or unix://")
    return value


def _parse_test_number(value: object) -> FixedCodeSetting:
    match = _TEST_NUMBER.fullmatch(str(value))
    mistake = PydanticCustomError("test_number", "must be phone=code@last-day, as in +79001234567=1234@2030-01-31")
    if not match:
        raise mistake
    phone, code, until = match.groups()
    try:
        return FixedCodeSetting(parse_phone(phone), FixedCode(code, date.fromisoformat(until) if until else None))
    except (ValueError, PhoneNotCallable):
        raise mistake from None


def _is_token_keys(value: SecretStr) -> SecretStr:
    try:
        TokenSigner(value.get_secret_value())
    except ValueError as error:
        raise PydanticCustomError("token_keys", "{message}", {"message": str(error)}) from None
    return value


def _has_token_keys(value: Path) -> Path:
    _is_token_keys(SecretStr(value.read_text(encoding="utf-8", errors="replace")))
    return value


_CommaSeparated = (NoDecode, BeforeValidator(_split))
_SecretKey = Annotated[SecretStr, AfterValidator(_long_enough)]
_Prefix = Annotated[str, Field(pattern=r"^\+7[0-9]{0,10}$")]
_Count = Annotated[int, Field(ge=1, le=10_000_000)]
_Timeout = Annotated[float, Field(gt=0, le=60)]
_Purpose = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True)


class PlusofonSettings(_Section):
    """The provider."""

    user_id: str = Field("", max_length=64)
    access_token: SecretStr = SecretStr("")
    cabinet_token: SecretStr | None = None
    base_url: str = Field("https://restapi.plusofon.ru", pattern="^https://")
    phone_prefix: Literal["7", "8"] = "8"
    connect_timeout_seconds: _Timeout = 3
    timeout_seconds: _Timeout = 10
    max_connections: int = Field(50, ge=1, le=1000)

    @field_validator("timeout_seconds")
    @classmethod
    def _longer_than_connecting(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("connect_timeout_seconds", 0):
            raise PydanticCustomError("too_short", "must be more than PLUSOFON_CONNECT_TIMEOUT_SECONDS")
        return value


class SecretSettings(_Section):
    """The key of all digests, and those before it."""

    key: _SecretKey | None = None
    previous_keys: Annotated[list[_SecretKey], *_CommaSeparated] = []


class ApiSettings(_Section):
    """Who may call."""

    keys: Annotated[list[Annotated[ApiKey, PlainValidator(_parse_api_key)]], *_CommaSeparated] = []


class AdminSettings(_Section):
    """Who may see and lift what the fraud guard blocked."""

    keys: Annotated[list[Annotated[ApiKey, PlainValidator(_parse_api_key)]], *_CommaSeparated] = []


class RedisSettings(_Section):
    """Where verifications are kept."""

    url: Annotated[SecretStr, AfterValidator(_is_redis_url)] | None = None
    timeout_seconds: _Timeout = 1


class TokenSettings(_Section):
    """The proof that a right check gives. The first of the keys signs, all of them verify."""

    keys: Annotated[SecretStr, AfterValidator(_is_token_keys)] | None = None
    keys_file: Annotated[FilePath, AfterValidator(_has_token_keys)] | None = None
    issuer: str = Field("plusofon-verify", min_length=1, max_length=255)
    lifetime_seconds: int = Field(600, ge=30, le=3600)

    @field_validator("keys_file")
    @classmethod
    def _instead_of_keys(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value and info.data.get("keys"):
            raise PydanticCustomError("both", "must be left out where TOKEN_KEYS is given")
        return value


class CodeSettings(_Section):
    """The code that is spoken. The provider's limits: six digits, five minutes."""

    length: int = Field(6, ge=MIN_LENGTH, le=MAX_LENGTH)
    lifetime_seconds: int = Field(300, ge=30, le=300)
    repeat: int = Field(2, ge=1, le=5)


class CallSettings(_Section):
    """How often one phone is called."""

    limit: int = Field(3, ge=1, le=10)
    cooldowns_seconds: Annotated[
        list[Annotated[int, Field(ge=0, le=3600)]], *_CommaSeparated, Field(min_length=1, max_length=10)
    ] = [60, 120, 300]


class CheckSettings(_Section):
    """How many guesses a verification has."""

    limit: int = Field(5, ge=1, le=10)


class PhoneSettings(_Section):
    """Which numbers are never called, beside those that are not Russian mobiles, and which the guard leaves alone."""

    denied_prefixes: Annotated[list[_Prefix], *_CommaSeparated] = ["+7940", "+7998"]
    allowed_prefixes: Annotated[list[_Prefix], *_CommaSeparated] = []


class LimitSettings(_Section):
    """How much is allowed beyond one verification. The period is part of the meaning of each."""

    calls_per_phone_hour: _Count = 5
    calls_per_phone_day: _Count = 10
    calls_per_address: _Count = 10
    calls_per_range: _Count = 30
    calls_per_client: _Count = 600
    calls_per_day: _Count = 1000
    failed_checks_per_phone: _Count | None = None
    failed_checks_per_address: _Count = 100
    failed_checks_per_client: _Count = 100


class GuardSettings(_Section):
    """When a range of numbers looks like artificial traffic."""

    enabled: bool = True
    min_calls: _Count = 20
    min_conversion_percent: int = Field(10, ge=0, le=100)

    def rules(self, allowed_prefixes: Iterable[str]) -> GuardRules:
        """Make the rules of the guard."""
        return GuardRules(
            enabled=self.enabled,
            min_calls=self.min_calls,
            min_conversion=self.min_conversion_percent / 100,
            allowed_prefixes=tuple(allowed_prefixes),
        )


class TestSettings(_Section):
    """Numbers to which no call is placed and whose code is fixed."""

    numbers: Annotated[list[Annotated[FixedCodeSetting, PlainValidator(_parse_test_number)]], *_CommaSeparated] = []


class ClientSettings(_Section):
    """What one client may do, where that differs from what everybody may."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purposes: list[_Purpose] | None = None
    channels: list[Channel] | None = None
    calls_per_minute: _Count | None = None
    calls_per_day: _Count | None = None
    failed_checks: _Count | None = None


class LogSettings(_Section):
    """What is logged, and how: ``auto`` is colours in a terminal and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Settings(BaseSettings):
    """All settings. The environment's ``PLUSOFON_USER_ID`` is ``plusofon.user_id`` here, and so on.

    Raises:
        ValidationError: on creation; ``load_settings`` turns it into sentences.

    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        extra="ignore",  # .env is shared with docker compose
        frozen=True,
    )

    mode: Mode = Mode.PRODUCTION
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    purposes: Annotated[list[_Purpose], *_CommaSeparated, Field(min_length=1)] = [
        "phone_verification",
        "password_reset",
        "login",
    ]
    plusofon: PlusofonSettings = PlusofonSettings()
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
    test: TestSettings = TestSettings()
    log: LogSettings = LogSettings()
    clients: dict[str, ClientSettings] = {}

    @model_validator(mode="wrap")
    @classmethod
    def _fail_closed(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - unvalidated
        """Tell what is missing together with what is wrong, so that one look is enough."""
        mistakes = list(_mode_mistakes(data))
        try:
            settings = handler(data)
        except ValidationError as error:
            mistakes += [_mistake(found["loc"], found["msg"]) for found in error.errors(include_url=False)]
        else:
            mistakes += settings.contradictions()
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, mistakes, hide_input=True)
        return settings

    def contradictions(self) -> Iterator[InitErrorDetails]:
        """Find what is right alone and wrong together."""
        with_keys = {key.client for key in self.api.keys}
        for name in self.clients:
            if with_keys and name not in with_keys:
                yield _mistake(("clients", name), "has no key in API_KEYS")
        if self.mode is Mode.PRODUCTION:
            today = datetime.now(UTC).date()
            for place, (_, fixed) in enumerate(self.test.numbers):
                if fixed.until is None or fixed.until < today:
                    yield _mistake(("test", "numbers", place), "needs a last day that has not passed, in production")

    @property
    def policies(self) -> Policies:
        """The rules for everybody, and those of the clients that have their own."""
        return Policies(self._policy, {name: self._policy_of(client) for name, client in self.clients.items()})

    def _policy_of(self, client: ClientSettings) -> Policy:
        policy = self._policy
        limits = [replace(policy.calls_per_client[0], count=client.calls_per_minute or self.limit.calls_per_client)]
        if client.calls_per_day:
            limits.append(Limit("calls_per_client_day", client.calls_per_day, DAY))
        failed = client.failed_checks or self.limit.failed_checks_per_client
        return replace(
            policy,
            purposes=frozenset(client.purposes) if client.purposes is not None else policy.purposes,
            channels=frozenset(client.channels) if client.channels is not None else policy.channels,
            calls_per_client=tuple(limits),
            failed_checks_per_client=_failed_checks_per_client(failed),
        )

    @property
    def _policy(self) -> Policy:
        limit, minute = self.limit, timedelta(minutes=1)
        failed_checks = limit.failed_checks_per_phone or _FAILED_CHECKS_A_DAY[self.code.length]
        return Policy(
            code_length=self.code.length,
            lifetime=timedelta(seconds=self.code.lifetime_seconds),
            calls=self.call.limit,
            checks=self.check.limit,
            cooldowns=tuple(timedelta(seconds=pause) for pause in self.call.cooldowns_seconds),
            purposes=frozenset(self.purposes),
            denied_prefixes=tuple(self.phone.denied_prefixes),
            allowed_prefixes=tuple(self.phone.allowed_prefixes),
            repeat=self.code.repeat,
            calls_per_phone=(
                Limit("calls_per_phone_hour", limit.calls_per_phone_hour, HOUR),
                Limit("calls_per_phone_day", limit.calls_per_phone_day, DAY),
            ),
            calls_per_address=Limit("calls_per_address", limit.calls_per_address, 10 * minute),
            calls_per_range=Limit("calls_per_range", limit.calls_per_range, HOUR),
            calls_per_client=(Limit("calls_per_client", limit.calls_per_client, minute),),
            calls_per_day=Limit("calls_per_day", limit.calls_per_day, DAY),
            failed_checks_per_phone=Limit("failed_checks_per_phone", failed_checks, DAY),
            failed_checks_per_address=Limit("failed_checks_per_address", limit.failed_checks_per_address, 10 * minute),
            failed_checks_per_client=_failed_checks_per_client(limit.failed_checks_per_client),
        )

    @cached_property
    def secret_keys(self) -> list[bytes]:
        """The secret keys, newest first; in sandbox mode without one, a key that lives as long as the process."""
        newest = self.secret.key or SecretStr(secrets.token_hex(_MIN_SECRET_BYTES))
        return [key.get_secret_value().encode() for key in (newest, *self.secret.previous_keys)]

    @cached_property
    def token_keys(self) -> str:
        """The keys of tokens, as JSON; in sandbox mode without any, a key that lives as long as the process."""
        if self.token.keys:
            return self.token.keys.get_secret_value()
        return self.token.keys_file.read_text(encoding="utf-8") if self.token.keys_file else generate_keys()


def _failed_checks_per_client(count: int) -> Limit:
    return Limit("failed_checks_per_client", count, timedelta(minutes=10))


def load_settings(**overrides: object) -> Settings:
    """Read the settings; ``overrides`` come before the environment, which comes before ``.env``.

    Raises:
        SettingsError: something is missing or wrong.

    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type] # pydantic validates them
    except UnreadableSetting as error:  # its message has the name of the field and no value
        name = str(error).partition('field "')[2].partition('"')[0]
        raise SettingsError([f"{name.upper()} is not valid JSON."]) from None
    except ValidationError as error:
        raise SettingsError([_sentence(found["loc"], found["msg"]) for found in error.errors()]) from None


def _mode_mistakes(data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    mode = data.get("mode", Mode.PRODUCTION)
    if mode == Mode.PRODUCTION:
        for name, meaning in _REQUIRED_IN_PRODUCTION.items():
            section, field = name.lower().split("_", 1)
            given = data.get(section, {})
            if not (given.get(field) or given.get(f"{field}_file")):
                yield _mistake((section, field), f"is missing: {meaning}")
    elif mode == Mode.SANDBOX and "base_url" in data.get("plusofon", {}):
        yield _mistake(("plusofon", "base_url"), "must be left out in sandbox mode, which brings its own provider")


def _mistake(location: tuple[int | str, ...], message: str) -> InitErrorDetails:
    # The message is a value of the error, not its template: it may contain braces.
    return InitErrorDetails(
        type=PydanticCustomError("mistake", "{message}", {"message": message}), loc=location, input=None
    )


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    """Name a setting as the environment does, and say what is wrong with it."""
    name = "_".join(part for part in location if isinstance(part, str)).upper()
    items = "".join(f" (item {part + 1})" for part in location if isinstance(part, int))
    return f"{name}{items} {message[:1].lower()}{message[1:]}."
