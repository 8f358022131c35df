"""What the domain asks of the world around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from app.verification.model import (
    CallOutcome,
    CallState,
    Channel,
    CheckResult,
    Lang,
    ProviderAccount,
    Verification,
)
from app.verification.phone import Phone
from app.verification.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCall:
    """A call about to be placed: for whom, to whom, what for, and the digest of its code."""

    client: str
    phone: Phone
    purpose: str
    channel: Channel
    code_digest: bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """A verification as read, and whether the reader is the one to look its latest call up at the provider now."""

    verification: Verification
    lookup_due: bool


class VerificationStore(Protocol):
    """Keeps verifications; each method is one atomic step. All raise StoreUnavailable."""

    async def start(self, call: NewCall, policy: Policy) -> Verification:
        """Store the digest of a call about to be placed: of a new verification, or of the pending one (a resend).

        Raises CallCooldown, RateLimited (``calls_per_verification``) or VerificationLocked.
        """
        ...

    async def record_call(
        self, verification: Verification, serial: int, state: CallState, ref: str | None = None
    ) -> Verification:
        """Write what became of a call; a final state stays. Raises VerificationNotFound if it expired meanwhile."""
        ...

    async def take_back(self, verification: Verification, serial: int) -> None:
        """Undo a call that did not happen: its code, its place in the count, its cooldown. Harmless when repeated."""
        ...

    async def check_by_id(self, client: str, verification_id: str, candidates: Sequence[bytes]) -> CheckResult:
        """Count the check, compare, consume.

        Raises VerificationNotFound, VerificationAlreadyUsed, VerificationCanceled or VerificationLocked.
        """
        ...

    async def check_by_phone(self, client: str, phone: Phone, purpose: str, candidates: Sequence[bytes]) -> CheckResult:
        """Do as ``check_by_id`` does, for the latest verification of this phone and purpose."""
        ...

    async def read(self, client: str, verification_id: str, policy: Policy) -> Reading:
        """Read a verification; one reader per ``policy.lookup_interval`` is told to look the call up.

        Raises VerificationNotFound.
        """
        ...

    async def cancel(self, client: str, verification_id: str) -> Verification:
        """Make a pending verification canceled (again: no change).

        Raises VerificationNotFound, VerificationAlreadyUsed or VerificationLocked.
        """
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...


class CallProvider(Protocol):
    """Places calls and tells what became of them."""

    async def initiate_call(self, phone: Phone, pin: str, lang: Lang, repeat: int) -> CallOutcome:
        """Have the code spoken ``repeat`` times. Never raises for what the provider or the network does."""
        ...

    async def check_call_status(self, call_id: str) -> CallState:
        """Tell the state of a call that was placed. Raises ProviderError."""
        ...

    async def get_account(self) -> Sequence[ProviderAccount]:
        """Tell the accounts, without their tokens. Raises ProviderError."""
        ...

    async def get_balance(self) -> Decimal:
        """Tell the balance in RUB. Raises ProviderError."""
        ...
