"""Builds the parts of the chaos test around one Redis and one provider, and removes them afterwards."""

import base64
import hashlib
import json
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from app.sandbox.plusofon_api import create_sandbox_app
from app.sandbox.server import SandboxServer
from app.store.connection import connect_any
from app.store.scripts import ScriptRunner
from app.tokens import generate_keys
from benchmarks.chaos_client import Client
from benchmarks.chaos_ledger import Ledger
from benchmarks.chaos_network import ChoosingNetwork
from benchmarks.chaos_people import People
from benchmarks.chaos_receiver import Receiver
from benchmarks.chaos_redis import ChaosRedis, Kind, make_redis
from benchmarks.chaos_worker import PROVIDER_URL
from benchmarks.chaos_workers import Workers

CLIENT = "shop"
USER_ID, PROVIDER_TOKEN = "chaos", "chaos-access-token"
WORKERS = 3
LIFETIME = 30  # seconds; as short as possible, so that codes expire during the test
COOLDOWN = 1  # seconds; so short that it does not hide a second call of a repeated start

# How long a key may be in progress after its worker was killed, in seconds: before the call was recorded in the
# journal, and after that, which is twice the longest request (the timeouts below, and Redis before and after).
CLAIM, WORK = 3.0, 8.0

MANY = "10000000"
SERVICE = {
    "LOG_LEVEL": "warning",
    "LOG_FORMAT": "json",
    "CODE_LIFETIME_SECONDS": str(LIFETIME),
    "CALL_COOLDOWNS_SECONDS": str(COOLDOWN),
    "PLUSOFON_TIMEOUT_SECONDS": "2",
    "PLUSOFON_CONNECT_TIMEOUT_SECONDS": "1",
    "PLUSOFON_CIRCUIT_SECONDS": "1",
    "PLUSOFON_HOOK_DELAY_SECONDS": "0.5",
    "WATCH_PER_SECOND": "100",
    "LIMIT_CALLS_PER_RANGE": MANY,
    "LIMIT_CALLS_PER_CLIENT": MANY,
    "LIMIT_CALLS_PER_DAY": MANY,
    "LIMIT_FAILED_CHECKS_PER_PHONE": MANY,
    "LIMIT_FAILED_CHECKS_PER_CLIENT": MANY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The parts of the chaos test."""

    ledger: Ledger
    network: ChoosingNetwork
    redis: ChaosRedis
    runner: ScriptRunner
    receiver: Receiver
    workers: Workers
    client: Client
    people: People


@asynccontextmanager
async def open_scene(kind: Kind, *, wait_replicas: int) -> AsyncIterator[Scene]:
    """Build all parts around a Redis of that kind, and remove them at the end."""
    ledger = Ledger()
    network = ChoosingNetwork()
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    api_key = secrets.token_urlsafe(32)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plusofon-verify-chaos-")))
        redis = stack.enter_context(make_redis(kind, folder))
        client_of_redis = connect_any(redis.url, timeout=10)
        stack.push_async_callback(client_of_redis.aclose)
        provider = create_sandbox_app(network, user_id=USER_ID, access_token=PROVIDER_TOKEN)
        provider_url = (await stack.enter_async_context(SandboxServer(provider))).url
        http = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=10, connect=2)
            )
        )
        receiver = Receiver(secret, ledger, http)
        receiver_url = (await stack.enter_async_context(SandboxServer(receiver.app))).url
        environment = {
            **SERVICE,
            PROVIDER_URL: provider_url,
            "REDIS_URL": redis.url,
            **({"REDIS_WAIT_REPLICAS": str(wait_replicas)} if wait_replicas else {}),
            "PUBLIC_URL": receiver_url,
            "PLUSOFON_USER_ID": USER_ID,
            "PLUSOFON_ACCESS_TOKEN": PROVIDER_TOKEN,
            "SECRET_KEY": secrets.token_urlsafe(48),
            "TOKEN_KEYS": generate_keys(),
            "API_KEYS": f"{CLIENT}:{hashlib.sha256(api_key.encode()).hexdigest()}",
            "CLIENTS": json.dumps(
                {
                    CLIENT: {
                        "webhook_url": f"{receiver_url}/events",
                        "webhook_secret": secret,
                        "webhook_full_phone": True,
                    }
                }
            ),
        }
        workers = await stack.enter_async_context(Workers(WORKERS, environment, folder))
        receiver.worker_urls = [worker.url for worker in workers.all]
        client = Client(http, receiver.worker_urls, api_key, ledger)
        people = People(client, network, ledger, lifetime=LIFETIME, cooldown=COOLDOWN)
        yield Scene(
            ledger=ledger,
            network=network,
            redis=redis,
            runner=ScriptRunner(client_of_redis, timeout=10),
            receiver=receiver,
            workers=workers,
            client=client,
            people=people,
        )
