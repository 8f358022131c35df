"""The sandbox: Plusofon's HTTP API on loopback, in front of a virtual telephone network."""

from app.sandbox.calls import NetworkStatus, VirtualCall
from app.sandbox.faults import Fault, Faults
from app.sandbox.network import (
    CallRefused,
    CallUnknown,
    FlashCall,
    NetworkError,
    NoAccess,
    NoCallWaiting,
    NoReply,
    VirtualNetwork,
    WrongNumber,
)
from app.sandbox.numbers import MagicNumber
from app.sandbox.plusofon_api import ACCOUNT_TOKEN, create_sandbox_app
from app.sandbox.routes import sandbox_router
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
    "NoCallWaiting",
    "NoReply",
    "SandboxServer",
    "VirtualCall",
    "VirtualNetwork",
    "WrongNumber",
    "create_sandbox_app",
    "sandbox_router",
]
