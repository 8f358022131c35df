"""A stand-in for Plusofon: its wire protocol over real HTTP on loopback, answered by a virtual telephone network."""

from app.plusofon.sandbox.api import ACCOUNT_TOKEN, create_sandbox_app
from app.plusofon.sandbox.calls import NetworkStatus, VirtualCall
from app.plusofon.sandbox.errors import (
    CallRefused,
    CallUnknown,
    NetworkError,
    NoAccess,
    NobodyWaits,
    NoReply,
    WrongNumber,
)
from app.plusofon.sandbox.faults import Fault, Faults
from app.plusofon.sandbox.network import FlashCall, VirtualNetwork
from app.plusofon.sandbox.numbers import MagicNumber
from app.plusofon.sandbox.phones import sandbox_router
from app.plusofon.sandbox.server import SandboxServer

__all__ = [
    "ACCOUNT_TOKEN",
    "CallRefused",
    "CallUnknown",
    "Fault",
    "Faults",
    "FlashCall",
    "MagicNumber",
    "NetworkError",
    "NetworkStatus",
    "NoAccess",
    "NoReply",
    "NobodyWaits",
    "SandboxServer",
    "VirtualCall",
    "VirtualNetwork",
    "WrongNumber",
    "create_sandbox_app",
    "sandbox_router",
]
