"""All objects of the service, for the commands that need more than its stores."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.cli.stores import run_with
from app.container import Container, make_network, open_container
from app.sandbox.network import VirtualNetwork
from app.settings import Settings
from app.telemetry.logging import disable_logging

_T = TypeVar("_T")


def run_with_container(
    use: Callable[[Container], Awaitable[_T]], settings: Settings, network: VirtualNetwork | None = None
) -> _T:
    """Return the result of ``use``, or end the command with what is wrong with Redis.

    Without ``network``, the sandbox gets a new one. Raises SettingsError.
    """
    disable_logging()
    return run_with(open_container(settings, network or make_network(settings)), use, settings)
