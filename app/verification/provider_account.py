"""The account at the provider: its names and its balance."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from app.verification.errors import ProviderError
from app.verification.model import ProviderAccount
from app.verification.ports import ProviderAccounts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProviderOverview:
    """The accounts at the provider and the balance in RUB, if it could be read."""

    accounts: Sequence[ProviderAccount]
    balance_rub: Decimal | None


class AccountReader:
    """Reads the provider's accounts and balance. Concurrent reads share one answer, and leave connections to calls."""

    def __init__(self, accounts: ProviderAccounts) -> None:
        self._accounts = accounts
        self._reading: asyncio.Task[ProviderOverview] | None = None

    async def read(self) -> ProviderOverview:
        """Read both. Raises ProviderError if the accounts cannot be read; an unreadable balance is None."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(self._reading)

    async def _read(self) -> ProviderOverview:
        accounts = await self._accounts.get_account()
        try:
            balance = await self._accounts.get_balance()
        except ProviderError as error:
            log.warning("provider.balance_unknown", extra={"error": repr(error)})
            return ProviderOverview(accounts, None)
        return ProviderOverview(accounts, balance)
