"""What the application gives its routes: the names of ``request.state``."""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import TypedDict

from app.api.auth import ApiKeys
from app.api.event_stream import Live
from app.api.idempotency import Idempotency
from app.api.middleware import RequestHandled
from app.api.ops import Circuit, Exposition
from app.verification.balance import Balance
from app.verification.call_urls import CallbackUrls
from app.verification.fraud_guard import FraudGuard
from app.verification.ports import ProofTokens, Redemptions
from app.verification.provider_account import AccountReader
from app.verification.service import VerificationService


class State(TypedDict):
    """Is built when the application starts; Starlette copies it into the state of each request."""

    service: VerificationService
    idempotency: Idempotency
    tokens: ProofTokens
    accounts: AccountReader
    redemptions: Redemptions
    guard: FraudGuard
    live: Live
    callback_urls: CallbackUrls
    callback_networks: Sequence[IPv4Network | IPv6Network]
    balance: Balance
    circuits: Mapping[str, Circuit]
    metrics: Exposition
    request_handled: RequestHandled
    api_keys: ApiKeys
    admin_keys: ApiKeys
    metrics_keys: ApiKeys
    account_keys: ApiKeys
