"""What a person can turn at the sandbox: the account's money, and how often the provider fails."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.sandbox.faults import Fault, Faults
from app.sandbox.network import VirtualNetwork

_Share = Annotated[
    float,
    Field(ge=0, le=1, allow_inf_nan=False, description="How many of the requests that place a call fail: 0.3 is 30 %."),
]
_Kinds = Annotated[list[Fault], Field(min_length=1, description="What can happen to them.")]
_Balance = Annotated[
    float, Field(ge=0, le=1_000_000, allow_inf_nan=False, description="What is left of the account's money, in RUB.")
]


class SandboxAccount(BaseModel):
    """The sandbox's account at the provider."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"balance": 10000.0, "price": 3.0}]})

    balance: _Balance
    price: float = Field(description="What a call costs, in RUB.")


class NewBalance(BaseModel):
    """Another balance."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"balance": 5}]})

    balance: _Balance


class SandboxFaults(BaseModel):
    """How often the sandbox's provider fails."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"share": 0.3, "kinds": list(Fault), "met": {"closed_after": 2}}]}
    )

    share: _Share
    kinds: _Kinds
    met: Mapping[Fault, int] = Field(description="How many requests met each, since the share was set.")


class NewFaults(BaseModel):
    """Another share of faults."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"share": 0.3}]})

    share: _Share
    kinds: _Kinds | None = Field(None, description="What can happen to them; all of it if left out.")
    seed: int | None = Field(None, description="The same seed draws the same faults again.")


def add_controls(router: APIRouter, network: VirtualNetwork) -> None:
    """Add the routes that change how ``network`` behaves. A router included in another would be logged by half."""

    @router.get("/account", operation_id="getSandboxAccount")
    async def read_sandbox_account() -> SandboxAccount:
        """Return what is left of the money that pays for the calls of the sandbox. It is nobody's."""
        return SandboxAccount(balance=float(network.balance), price=float(network.price))

    @router.put("/account", operation_id="setSandboxBalance")
    async def set_sandbox_balance(account: NewBalance) -> SandboxAccount:
        """Set the balance, to see what a low one does. Below the price of a call none is placed."""
        network.balance = Decimal(str(account.balance))
        return await read_sandbox_account()

    @router.get("/faults", operation_id="getSandboxFaults")
    async def read_sandbox_faults() -> SandboxFaults:
        """Return how often the provider fails on purpose, and what has happened so far. At first it never does."""
        faults = network.faults
        return SandboxFaults(share=faults.share, kinds=list(faults.kinds), met=faults.met)

    @router.put("/faults", operation_id="setSandboxFaults")
    async def set_sandbox_faults(faults: NewFaults) -> SandboxFaults:
        """Have a share of the requests that place a call fail, each in a way drawn by lot; `0` ends it.

        In `closed_after`, `delayed`, `stalled` and `malformed` the call is placed all the same.
        """
        network.faults = Faults(share=faults.share, kinds=tuple(faults.kinds or Fault), seed=faults.seed)
        return await read_sandbox_faults()
