"""Plusofon's channels, each as a CallSender: voice, flash call and reverse call."""

from collections.abc import Callable

from app.providers.plusofon.client import PlusofonClient
from app.verification.channels import Channel
from app.verification.errors import ProviderRejected
from app.verification.model import CallOutcome, CallState
from app.verification.ports import CallId, CallOrder, CallSender

PLUSOFON = "plusofon"  # the name of the provider


class _Channel:
    """A CallSender. No source names a route for the state of its calls, but for those of voice (open)."""

    provider = PLUSOFON
    supports_status = False

    def __init__(self, client: PlusofonClient) -> None:
        self._client = client

    def require_ready(self) -> None:
        """Return: nothing is known here."""

    async def fetch_status(self, call_ref: str) -> CallState | None:  # noqa: ARG002 - the signature is the port's
        """Raise ProviderRejected. None would say that the call was never placed, and have it refunded."""
        raise ProviderRejected("calls of this channel cannot be looked up")


class VoiceChannel(_Channel):
    """Has a voice say the code (brief)."""

    supports_status = True

    async def place(self, order: CallOrder) -> CallOutcome:
        """Have the code spoken."""
        return await self._client.initiate_call(
            order.phone, order.code or "", order.lang, order.repeat, timeout=order.timeout
        )

    async def fetch_status(self, call_ref: str) -> CallState | None:
        """Return the state of a call. Raises ProviderError."""
        return await self._client.check_call_status(call_ref)


class FlashCallChannel(_Channel):
    """Has the phone called from a number whose last four digits are the code (docs, seen)."""

    async def place(self, order: CallOrder) -> CallOutcome:
        """Have the phone called. The ``code`` of the outcome counts, where there is one."""
        return await self._client.send_flash_call(order.phone, order.code, timeout=order.timeout)


class ReverseCallChannel(_Channel):
    """Gets a number for the person to dial, and places no call (docs, seen).

    ``callback_url`` makes the URL to which Plusofon posts when the call of that id came in. Nothing signs that request,
    so the URL should hold a secret.
    """

    def __init__(self, client: PlusofonClient, callback_url: Callable[[CallId], str]) -> None:
        super().__init__(client)
        self._callback_url = callback_url

    async def place(self, order: CallOrder) -> CallOutcome:
        """Ask for a number to dial. Never ``Unknown``: without a number there is no call."""
        return await self._client.call_to_auth(order.phone, self._callback_url(order.call_id), timeout=order.timeout)


def make_senders(client: PlusofonClient, callback_url: Callable[[CallId], str]) -> dict[Channel, CallSender]:
    """Return the sender of each channel; ``callback_url`` is for ``ReverseCallChannel``."""
    return {
        Channel.VOICE: VoiceChannel(client),
        Channel.FLASH_CALL: FlashCallChannel(client),
        Channel.REVERSE_CALL: ReverseCallChannel(client, callback_url),
    }
