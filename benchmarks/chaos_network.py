"""The provider of the chaos test: slow, failing, and choosing the codes of some flash calls itself."""

import random
from decimal import Decimal

from app.sandbox.calls import VirtualCall
from app.sandbox.faults import Faults
from app.sandbox.network import VirtualNetwork

FAULTS = 0.3  # share of the requests that place a call
PACE = 0.2  # seconds of a phase of a call
DELAY = 1.0  # seconds by which a late response of the provider is delayed
CHOSEN = 0.5  # share of flash calls whose code the provider chooses, instead of the requested one


class ChoosingNetwork(VirtualNetwork):
    """A network that returns the code of each flash call and chooses some itself; ``chosen`` holds the ids of those."""

    def __init__(self) -> None:
        faults = Faults(share=FAULTS, seed=42, delay=DELAY)
        balance = Decimal(10_000_000)
        super().__init__(pace=PACE, balance=balance, calls_kept=1_000_000, faults=faults, returns_pin=True)
        self.chosen: set[str] = set()

    def place_flash_call(self, *, phone: str, pin: str | None = None) -> VirtualCall:
        """Let the phone ring."""
        if random.random() >= CHOSEN:  # noqa: S311 - no secret
            return super().place_flash_call(phone=phone, pin=pin)
        placed = super().place_flash_call(phone=phone)
        self.chosen.add(placed.call_id)
        return placed
