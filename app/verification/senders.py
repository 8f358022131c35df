"""What senders have in common that stand in front of another one."""

from app.verification.model import CallOutcome, CallState
from app.verification.ports import CallOrder, CallSender


class SenderWrapper:
    """A CallSender that passes everything on to another; those that do more change what they are for."""

    def __init__(self, sender: CallSender) -> None:
        self._sender = sender

    @property
    def provider(self) -> str:
        """Whose it is."""
        return self._sender.provider

    @property
    def supports_status(self) -> bool:
        """Whether calls can be looked up."""
        return self._sender.supports_status

    def require_ready(self) -> None:
        """Return if a call may be placed now. Raises ProviderError."""
        self._sender.require_ready()

    async def place(self, order: CallOrder) -> CallOutcome:
        """Place a call."""
        return await self._sender.place(order)

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call. Raises ProviderError."""
        return await self._sender.fetch_status(call_ref)
