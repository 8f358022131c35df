"""A JsonRoute refuses, when it is registered, what it would describe but not pass to its endpoint."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body, Depends, Header
from pydantic import BaseModel

from app.api.dependencies import Client, ContainerDep, ExchangeDep
from app.api.routing import JsonRoute


class Order(BaseModel):
    """A body."""

    item: str


async def supported(body: Order, exchange: ExchangeDep, client: Client, container: ContainerDep) -> None: ...


async def described(
    body: Annotated[Order, Body(openapi_examples={})], exchange: ExchangeDep, client: Client, container: ContainerDep
) -> None: ...


async def query_parameter(
    body: Order, exchange: ExchangeDep, client: Client, container: ContainerDep, page: int = 1
) -> None: ...


async def header_parameter(
    body: Order,
    exchange: ExchangeDep,
    client: Client,
    container: ContainerDep,
    trace: Annotated[str | None, Header()] = None,
) -> None: ...


async def unknown_dependency(
    body: Order,
    exchange: ExchangeDep,
    client: Client,
    container: ContainerDep,
    tokens: Annotated[str, Depends(lambda: "")],
) -> None: ...


async def other_dependency_of_a_known_name(
    body: Order, exchange: ExchangeDep, client: Annotated[str, Depends(lambda: "anybody")], container: ContainerDep
) -> None: ...


async def missing_client(body: Order, exchange: ExchangeDep, container: ContainerDep) -> None: ...


async def two_bodies(
    body: Order, exchange: ExchangeDep, client: Client, container: ContainerDep, other: Order
) -> None: ...


async def body_of_another_name(
    order: Order, exchange: ExchangeDep, client: Client, container: ContainerDep
) -> None: ...


async def embedded_body(
    body: Annotated[Order, Body(embed=True)], exchange: ExchangeDep, client: Client, container: ContainerDep
) -> None: ...


async def body_without_a_model(
    body: dict[str, str], exchange: ExchangeDep, client: Client, container: ContainerDep
) -> None: ...


@pytest.fixture
def router() -> APIRouter:
    return APIRouter(route_class=JsonRoute)


@pytest.mark.parametrize("endpoint", [supported, described])
def test_a_route_with_the_supported_parameters_is_registered(router: APIRouter, endpoint: Callable[..., Any]) -> None:
    router.post("/orders")(endpoint)

    assert [route.path for route in router.routes if isinstance(route, JsonRoute)] == ["/orders"]


async def read(order_id: str, client: Client, container: ContainerDep) -> None: ...


async def read_for_anybody(order_id: str, container: ContainerDep) -> None: ...


async def read_a_page(order_id: str, client: Client, container: ContainerDep, page: int = 1) -> None: ...


async def read_by_number(order_id: int, client: Client, container: ContainerDep) -> None: ...


@pytest.mark.parametrize(
    ("endpoint", "is_direct"),
    [(read, True), (read_for_anybody, False), (read_a_page, False), (read_by_number, False)],
)
def test_a_route_without_a_body_takes_any_parameter_and_is_direct_with_the_supported_ones(
    router: APIRouter, endpoint: Callable[..., Any], *, is_direct: bool
) -> None:
    router.get("/orders/{order_id}")(endpoint)

    (route,) = router.routes
    assert isinstance(route, JsonRoute)
    assert (route.answer is not None) is is_direct


def test_a_route_without_a_body_but_with_dependencies_is_not_direct(router: APIRouter) -> None:
    router.get("/orders/{order_id}", dependencies=[Depends(lambda: None)])(read)

    (route,) = router.routes
    assert isinstance(route, JsonRoute)
    assert route.answer is None


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
    async def replace(
        order_id: str, body: Order, exchange: ExchangeDep, client: Client, container: ContainerDep
    ) -> None: ...

    with pytest.raises(TypeError, match="order_id"):
        router.put("/orders/{order_id}")(replace)


def test_a_dependency_of_the_route_or_the_router_is_refused(router: APIRouter) -> None:
    with pytest.raises(TypeError, match="dependencies"):
        router.post("/orders", dependencies=[Depends(lambda: None)])(supported)
    guarded = APIRouter(route_class=JsonRoute, dependencies=[Depends(lambda: None)])
    with pytest.raises(TypeError, match="dependencies"):
        guarded.post("/orders")(supported)
