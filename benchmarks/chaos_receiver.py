"""The client's server in the chaos test: a webhook receiver that sometimes fails, and a proxy for callbacks."""

import random
from collections.abc import Sequence

import aiohttp
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.chaos_ledger import Delivered, Ledger

_FAILS = 0.1  # share of events whose first delivery is answered with a 500
_TAKEN = 0.3  # share of those that are accepted before the 500


class Receiver:
    """Accepts webhook events, and passes provider callbacks on to a running worker, as a load balancer does.

    An event fails at most once: the retry after a second failure would come only after five minutes.
    """

    def __init__(self, secret: str, ledger: Ledger, http: aiohttp.ClientSession) -> None:
        self._webhook = Webhook(secret)
        self._ledger = ledger
        self._http = http
        self._failed: set[str] = set()
        self.worker_urls: Sequence[str] = ()
        self.forged: list[str] = []
        self.app = Starlette(
            routes=[
                Route("/events", self._take, methods=["POST"]),
                Route("/hooks/plusofon/{secret}", self._hand_on, methods=["POST"]),
            ]
        )

    @property
    def failures(self) -> int:
        """The number of deliveries answered with a 500."""
        return len(self._failed)

    async def _take(self, request: Request) -> Response:
        body = await request.body()
        try:
            event = self._webhook.verify(body, dict(request.headers))
        except WebhookVerificationError as error:
            self.forged.append(f"an event without a valid signature: {error}")
            return Response(status_code=401)
        event_id = request.headers["webhook-id"]
        fails = event_id not in self._failed and random.random() < _FAILS  # noqa: S311 - no secret
        if fails:
            self._failed.add(event_id)
        if not fails or random.random() < _TAKEN:  # noqa: S311 - no secret
            data = event["data"]
            taken = Delivered(event["type"], data["verification_id"], data["phone"])
            self._ledger.events.setdefault(event_id, taken).times += 1
        return Response(status_code=500 if fails else 204)

    async def _hand_on(self, request: Request) -> Response:
        body, kind = await request.body(), request.headers.get("content-type", "")
        for url in random.sample(self.worker_urls, len(self.worker_urls)):
            try:
                async with self._http.post(
                    url + request.url.path, data=body, headers={"Content-Type": kind}
                ) as response:
                    return Response(status_code=response.status)
            except aiohttp.ClientError:
                continue
        return Response(status_code=502)
