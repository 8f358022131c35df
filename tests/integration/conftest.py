"""Fixtures that run the whole application: real Redis, the sandbox provider over HTTP, requests through every layer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest
import uvloop
from fastapi import FastAPI
from redis.asyncio import Redis

from app.main import create_app
from app.sandbox.network import VirtualNetwork
from app.settings import Settings
from tests.waiting import lifespan_of

PACE = 0.02  # seconds of a phase of a call
SECRET_KEY = "a-secret-key-that-only-tests-use-0123456789"

Running = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def sandbox_settings(redis_url: str, **overrides: object) -> Settings:
    """Return sandbox settings with the voice channel only, which is the default in production."""
    defaults = {
        "mode": "sandbox",
        "redis": {"url": redis_url, "timeout_seconds": 10},  # a hundred requests at once, on a busy machine
        "secret": {"key": SECRET_KEY},
        "channels": ["voice"],
    }
    return Settings.model_validate({**defaults, **overrides})


@asynccontextmanager
async def run(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        lifespan_of(app) as manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app=manager.app), base_url="http://verify") as client,
    ):
        yield client


async def keys_of_requests(redis: Redis) -> set[bytes | str]:
    """Return the keys in Redis, without those of the work in the background, which begins with the service."""
    return {*await redis.keys()} - {b"pv3{attempts}", b"pv3{balance}"}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of the HTTP protocol on uvloop, as in the service: its transports differ from those of asyncio."""
    of_http = item.path.name.startswith("test_http_")
    return {"uvloop": uvloop.new_event_loop} if of_http else {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def network() -> VirtualNetwork:
    return VirtualNetwork(pace=PACE)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return sandbox_settings(redis_url)


@pytest.fixture
async def api(redis: Redis, settings: Settings, network: VirtualNetwork) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the API in sandbox mode, with an empty Redis."""
    async with run(create_app(settings, network)) as client:
        yield client
