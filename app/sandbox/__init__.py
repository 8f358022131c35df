"""The sandbox: Plusofon's HTTP API on loopback, in front of a virtual telephone network."""

from app.sandbox.faults import Fault, Faults
from app.sandbox.network import VirtualNetwork
from app.sandbox.numbers import MagicNumber
from app.sandbox.plusofon_api import create_sandbox_app
from app.sandbox.routes import sandbox_router
from app.sandbox.server import SandboxServer

__all__ = ["Fault", "Faults", "MagicNumber", "SandboxServer", "VirtualNetwork", "create_sandbox_app", "sandbox_router"]
