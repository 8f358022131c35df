"""Sandbox fallbacks are refused in production where keys and connections are made, even if validation was bypassed."""

from contextlib import AsyncExitStack

import pytest
from pydantic import SecretStr

from app.settings import Mode, Settings, SettingsError
from app.settings.sections import ApiSettings, PlusofonSettings, RedisSettings, SecretSettings, TokenSettings
from app.wiring.parts import connect_redis, make_api_keys
from app.wiring.providers import make_network, open_plusofon


def production_without_anything() -> Settings:
    """Return production settings without any required value, bypassing validation."""
    return Settings(mode=Mode.SANDBOX).model_copy(
        update={
            "mode": Mode.PRODUCTION,
            "secret": SecretSettings(),
            "token": TokenSettings(),
            "redis": RedisSettings(),
            "api": ApiSettings(),
            "plusofon": PlusofonSettings(access_token=SecretStr("")),
        }
    )


def production_with_an_account() -> Settings:
    account = PlusofonSettings(user_id="0", access_token=SecretStr("not-a-real-token"))
    return production_without_anything().model_copy(update={"plusofon": account})


def test_production_generates_no_keys() -> None:
    with pytest.raises(SettingsError, match="SECRET_KEY is missing"):
        _ = production_without_anything().secret_keys
    with pytest.raises(SettingsError, match="SECRET_KEY is missing"):
        _ = production_without_anything().names_secret
    with pytest.raises(SettingsError, match="TOKEN_KEYS is missing"):
        _ = production_without_anything().token_keys


async def test_production_starts_no_embedded_redis() -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(SettingsError, match="REDIS_URL is missing"):
            connect_redis(production_without_anything(), stack)


def test_production_requires_api_keys() -> None:
    with pytest.raises(SettingsError, match="API_KEYS is missing"):
        make_api_keys(production_without_anything())


async def test_production_places_no_call_in_the_sandbox_or_without_credentials() -> None:
    production = production_without_anything()
    async with AsyncExitStack() as stack:
        with pytest.raises(SettingsError, match="PLUSOFON_USER_ID is missing"):
            await open_plusofon(production, None, stack)
        no_token = production.model_copy(update={"plusofon": PlusofonSettings(user_id="0")})
        with pytest.raises(SettingsError, match="PLUSOFON_ACCESS_TOKEN is missing"):
            await open_plusofon(no_token, None, stack)
        with pytest.raises(SettingsError, match="MODE must be sandbox"):
            await open_plusofon(production_with_an_account(), make_network(production), stack)
