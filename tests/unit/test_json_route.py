"""A JsonRoute refuses, when it is registered, what it would describe but not pass to its endpoint."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body, Depends, Header, Request
from pydantic import BaseModel

from app.api.dependencies import Client, ContainerDep
from app.api.routing import JsonRoute


class Order(BaseModel):
    """A body."""

    item: str


async def supported(body: Order, http: Request, client: Client, container: ContainerDep) -> None: ...


async def described(
    body: Annotated[Order, Body(openapi_examples={})], http: Request, client: Client, container: ContainerDep
) -> None: ...


async def query_parameter(
    body: Order, http: Request, client: Client, container: ContainerDep, page: int = 1
) -> None: ...


async def header_parameter(
    body: Order, http: Request, client: Client, container: ContainerDep, trace: Annotated[str | None, Header()] = None
) -> None: ...


async def unknown_dependency(
    body: Order, http: Request, client: Client, container: ContainerDep, tokens: Annotated[str, Depends(lambda: "")]
) -> None: ...


async def other_dependency_of_a_known_name(
    body: Order, http: Request, client: Annotated[str, Depends(lambda: "anybody")], container: ContainerDep
) -> None: ...


async def missing_client(body: Order, http: Request, container: ContainerDep) -> None: ...


async def two_bodies(body: Order, http: Request, client: Client, container: ContainerDep, other: Order) -> None: ...


async def body_of_another_name(order: Order, http: Request, client: Client, container: ContainerDep) -> None: ...


async def embedded_body(
    body: Annotated[Order, Body(embed=True)], http: Request, client: Client, container: ContainerDep
) -> None: ...


async def body_without_a_model(
    body: dict[str, str], http: Request, client: Client, container: ContainerDep
) -> None: ...


@pytest.fixture
def router() -> APIRouter:
    return APIRouter(route_class=JsonRoute)


@pytest.mark.parametrize("endpoint", [supported, described])
def test_a_route_with_the_supported_parameters_is_registered(router: APIRouter, endpoint: Callable[..., Any]) -> None:
    router.post("/orders")(endpoint)

    assert [route.path for route in router.routes if isinstance(route, JsonRoute)] == ["/orders"]


def test_a_route_without_a_body_takes_any_parameter(router: APIRouter) -> None:
    async def read(order_id: str, tokens: Annotated[str, Depends(lambda: "")], page: int = 1) -> None: ...

    router.get("/orders/{order_id}")(read)


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        (query_parameter, "page"),
        (header_parameter, "trace"),
        (unknown_dependency, "tokens"),
        (other_dependency_of_a_known_name, "client"),
        (missing_client, "client"),
        (two_bodies, "one model"),
        (body_of_another_name, "one model"),
        (embedded_body, "one model"),
        (body_without_a_model, "one model"),
    ],
)
def test_a_parameter_that_would_be_ignored_is_refused(
    router: APIRouter, endpoint: Callable[..., Any], reason: str
) -> None:
    with pytest.raises(TypeError, match=rf"/orders: .*{reason}"):
        router.post("/orders")(endpoint)


def test_a_path_parameter_is_refused(router: APIRouter) -> None:
    async def replace(order_id: str, body: Order, http: Request, client: Client, container: ContainerDep) -> None: ...

    with pytest.raises(TypeError, match="order_id"):
        router.put("/orders/{order_id}")(replace)


def test_a_dependency_of_the_route_or_the_router_is_refused(router: APIRouter) -> None:
    with pytest.raises(TypeError, match="dependencies"):
        router.post("/orders", dependencies=[Depends(lambda: None)])(supported)
    guarded = APIRouter(route_class=JsonRoute, dependencies=[Depends(lambda: None)])
    with pytest.raises(TypeError, match="dependencies"):
        guarded.post("/orders")(supported)
