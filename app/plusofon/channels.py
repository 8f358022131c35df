"""Plusofon's channels, each as a CallSender."""

from app.plusofon.client import PlusofonClient
from app.verification.model import CallOutcome, CallState
from app.verification.ports import CallOrder

_PROVIDER = "plusofon"


class VoiceChannel:
    """The CallSender that has a voice say the code."""

    provider = _PROVIDER
    is_followed = True

    def __init__(self, client: PlusofonClient) -> None:
        self._client = client

    def require_ready(self) -> None:
        """Return: nothing is known here."""

    async def place(self, order: CallOrder) -> CallOutcome:
        """Have the code spoken."""
        return await self._client.initiate_call(order.phone, order.code or "", order.lang, order.repeat)

    async def look_up(self, call_ref: str) -> CallState | None:
        """Tell the state of a call."""
        return await self._client.check_call_status(call_ref)
