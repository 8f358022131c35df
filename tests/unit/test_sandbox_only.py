"""Sandbox fallbacks are refused in production where keys and connections are made, even if validation was bypassed."""

from contextlib import AsyncExitStack

import pytest
from pydantic import SecretStr

from app.api_keys import Unauthorized
from app.container import Builder, make_keys
from app.sandbox.network import VirtualNetwork
from app.settings import Mode, Settings, SettingsError
from app.settings.sections import ApiSettings, PlusofonSettings, RedisSettings, SecretSettings, TokenSettings
from app.stores import open_stores
from app.telemetry.metrics import Metrics


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
    with pytest.raises(SettingsError, match="REDIS_URL is missing"):
        async with open_stores(production_without_anything(), Metrics(), webhook_clients=()):
            pass


def test_production_requires_api_keys() -> None:
    with pytest.raises(SettingsError, match="API_KEYS is missing"):
        make_keys(production_without_anything())


def test_without_admin_keys_production_is_closed_to_admin_requests() -> None:
    """In the sandbox they are open."""
    keyed = production_without_anything().model_copy(update={"api": ApiSettings(keys=f"shop:{'0' * 64}")})

    for authorization in (None, "Bearer ", "Bearer a-key"):
        with pytest.raises(Unauthorized):
            make_keys(keyed).admins.client_of(authorization)
    assert make_keys(Settings(mode=Mode.SANDBOX)).admins.client_of(None) == "sandbox"


async def test_production_places_no_call_in_the_sandbox_or_without_credentials() -> None:
    production = production_without_anything()
    async with AsyncExitStack() as stack:
        with pytest.raises(SettingsError, match="PLUSOFON_USER_ID is missing"):
            await Builder(production, stack).open_plusofon(None)
        no_token = production.model_copy(update={"plusofon": PlusofonSettings(user_id="0")})
        with pytest.raises(SettingsError, match="PLUSOFON_ACCESS_TOKEN is missing"):
            await Builder(no_token, stack).open_plusofon(None)
        with pytest.raises(SettingsError, match="MODE must be sandbox"):
            await Builder(production_with_an_account(), stack).open_plusofon(VirtualNetwork())
