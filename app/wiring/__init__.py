"""Builds what the application is made of: the only place that knows every part and the settings."""

from app.wiring.doors import (
    open_accounts,
    open_dead_letters,
    open_guard,
    open_phone_eraser,
    open_redis,
    open_service,
    open_stats,
    open_tracing,
    open_verifications,
)
from app.wiring.providers import make_network
from app.wiring.service import build

__all__ = [
    "build",
    "make_network",
    "open_accounts",
    "open_dead_letters",
    "open_guard",
    "open_phone_eraser",
    "open_redis",
    "open_service",
    "open_stats",
    "open_tracing",
    "open_verifications",
]
