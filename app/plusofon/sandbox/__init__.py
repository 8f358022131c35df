"""A stand-in for Plusofon: its wire protocol over real HTTP on loopback, answered by a virtual telephone network."""

from app.plusofon.sandbox.network import (
    CallRefused,
    CallUnknown,
    MagicNumber,
    NetworkError,
    NetworkStatus,
    NoAccess,
    NoReply,
    VirtualCall,
    VirtualNetwork,
)
from app.plusofon.sandbox.phones import sandbox_router
from app.plusofon.sandbox.server import ACCOUNT_TOKEN, SandboxServer, create_sandbox_app

__all__ = [
    "ACCOUNT_TOKEN",
    "CallRefused",
    "CallUnknown",
    "MagicNumber",
    "NetworkError",
    "NetworkStatus",
    "NoAccess",
    "NoReply",
    "SandboxServer",
    "VirtualCall",
    "VirtualNetwork",
    "create_sandbox_app",
    "sandbox_router",
]
