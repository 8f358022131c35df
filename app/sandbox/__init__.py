"""A stand-in for Plusofon: its wire protocol over real HTTP on loopback, answered by a virtual telephone network."""

from app.sandbox.api import ACCOUNT_TOKEN, create_sandbox_app
from app.sandbox.calls import NetworkStatus, VirtualCall
from app.sandbox.errors import (
    CallRefused,
    CallUnknown,
    NetworkError,
    NoAccess,
    NobodyWaits,
    NoReply,
    WrongNumber,
)
from app.sandbox.faults import Fault, Faults
from app.sandbox.network import FlashCall, VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.sandbox.phones import sandbox_router
from app.sandbox.server import SandboxServer

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
