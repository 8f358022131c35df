"""The account at the provider, as it is shown: its names and its balance."""

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
    """Reads the provider's accounts and balance; all who ask at the same moment share one answer.

    They would else take the places of calls in the pool of connections.
    """

    def __init__(self, accounts: ProviderAccounts) -> None:
        self._accounts = accounts
        self._reading: asyncio.Task[ProviderOverview] | None = None

    async def read(self) -> ProviderOverview:
        """Read both.

        Raises:
            ProviderError: the accounts could not be read.

        """
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._forget)
        return await asyncio.shield(self._reading)

    async def _read(self) -> ProviderOverview:
        """Read both. An unreadable balance is unknown, which is not the same as low."""
        accounts = await self._accounts.get_account()
        try:
            balance = await self._accounts.get_balance()
        except ProviderError as error:
            log.warning("provider.balance_unknown", extra={"error": repr(error)})
            return ProviderOverview(accounts, None)
        return ProviderOverview(accounts, balance)

    def _forget(self, _: object) -> None:
        self._reading = None
