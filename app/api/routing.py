"""The FastAPI application, with a short way to the routes that are called most: FastAPI describes them."""

import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

from app.api.dependencies import Client, ContainerDep, ExchangeDep, authenticate
from app.api.exchange import CLIENT_CLOSED_REQUEST, Exchange
from app.api.problems import plain_problem

log = logging.getLogger(__name__)

Answer = Callable[..., Awaitable[Response]]
"""Takes the ``Exchange``, and the parameters of the path by name."""

_PARAMETERS = {"exchange": ExchangeDep, "client": Client, "container": ContainerDep}  # passed beside the body
_NO_PARAMETERS: Mapping[str, str] = {}
_BYTE_ORDER_MARK = 0xEF  # what begins with this or more is no JSON in UTF-8; a mark begins with 0xEF, 0xFE or 0xFF


class JsonRoute(APIRoute):
    """A route with a body, whose endpoint takes exactly ``body`` (one model), ``exchange``, ``client``, ``container``.

    FastAPI describes it, but to solve its dependencies and to parse the media type as an e-mail, and the body as JSON
    and then as a model, would cost as much as the rest of a check. So these four are found here: first the client, then
    the body, straight from its bytes. So are ``client``, ``container`` and texts from the path for a route without a
    body that takes these alone; any other is served by FastAPI.

    ``answer`` is the handler, if there is one; ``Application`` calls it without FastAPI's wrappers.
    """

    answer: Answer | None = None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the request handler. Raises TypeError if the route declares what would be described but ignored."""
        if self.body_field is None:
            self.answer = self._answer_without_body()
            return super().get_route_handler()
        endpoint, model = self.endpoint, self._require_supported(self.body_field.field_info.annotation)

        async def answer(exchange: Exchange) -> Response:
            container = exchange.container
            client = authenticate(exchange, container.keys.clients)
            body = _parse(await exchange.read(), exchange.header(b"content-type"), model)
            response: Response = await endpoint(body=body, exchange=exchange, client=client, container=container)
            return response

        async def handle(request: Request) -> Response:
            return await answer(request.scope["exchange"])

        self.answer = answer
        return handle

    def _declared(self) -> dict[str, Any]:
        signature = inspect.signature(self.endpoint, eval_str=True)
        return {name: parameter.annotation for name, parameter in signature.parameters.items()}

    def _answer_without_body(self) -> Answer | None:
        """Return the handler of a route that takes no more than client, container and texts from its path."""
        endpoint, expected = self.endpoint, {"client": Client, "container": ContainerDep}
        if self._declared() != expected | dict.fromkeys(self.param_convertors, str) or self.dependencies:
            return None

        async def answer(exchange: Exchange, **from_path: str) -> Response:
            container = exchange.container
            client = authenticate(exchange, container.keys.clients)
            response: Response = await endpoint(client=client, container=container, **from_path)
            return response

        return answer

    def _require_supported(self, described: object) -> type[BaseModel]:
        """Return the model of the body. Raises TypeError."""
        declared = self._declared()
        body = declared.pop("body", None)
        model: type[BaseModel] = next(iter(get_args(body)), body)
        # A body that is embedded has a model of its own, which FastAPI makes.
        is_model = inspect.isclass(model) and issubclass(model, BaseModel) and described is model
        if not is_model or declared != _PARAMETERS or self.dependencies:
            raise TypeError(
                f"{self.path}: a JsonRoute takes body (one model), {', '.join(_PARAMETERS)}, and no other dependencies;"
                f" it declares {sorted(declared)}"
            )
        return model


def _parse(content: bytes, media_type: str | None, model: type[BaseModel]) -> BaseModel:
    """Return the model of a body. Raises RequestValidationError."""
    is_json = content and media_type and media_type.partition(";")[0].strip().lower() == "application/json"
    if is_json and content[0] >= _BYTE_ORDER_MARK:
        content = content.decode(json.detect_encoding(content), errors="replace").encode()
    try:
        # Bytes under another media type fit no model: the error says what to send.
        return model.model_validate_json(content) if is_json else model.model_validate(content)
    except ValidationError as error:
        raise invalid_body(error) from None


def invalid_body(error: ValidationError) -> RequestValidationError:
    """Return the error of FastAPI for a body that is not valid, without the input."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found])


class Application(FastAPI):
    """A FastAPI application with ``RequestMiddleware`` in place of several of the framework's own middlewares.

    ``RequestMiddleware`` answers unhandled errors and bounds the body. Middlewares that are added stand around it.
    ``path_prefix`` is what a proxy strips from the paths of the requests.
    """

    path_prefix = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. By the ASGI specification its path begins with ``root_path``."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        self.middleware_stack = self.middleware_stack or self.build_middleware_stack()
        scope["app"], scope["root_path"], scope["path"] = self, self.path_prefix, self.path_prefix + scope["path"]
        await self.middleware_stack(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Return what serves a request; Starlette calls it once, when everything is added."""
        handlers = self.exception_handlers
        app: ASGIApp = ExceptionMiddleware(AsyncExitStackMiddleware(self.router), handlers)
        app = RequestMiddleware(app, self.routes, handlers)
        for middleware, arguments, options in reversed(self.user_middleware):
            app = middleware(app, *arguments, **options)
        return app


class RequestMiddleware:
    """A pure ASGI middleware that makes the ``Exchange`` of a request, and answers 500 if it fails.

    It passes a request for a ``JsonRoute`` with a handler, by its method and path, to that, and all others to FastAPI.
    The wrappers of FastAPI and Starlette around a handler cost a fifth of a check. Of what they do these routes need
    one thing, which is done here: an error is answered by the application's handler of its class.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute], handlers: Mapping[Any, ExceptionHandler]) -> None:
        self._app = app
        direct = [route for route in routes if isinstance(route, JsonRoute) and route.answer]
        self._by_path = {
            (method, route.path): route
            for route in direct
            if not route.param_convertors
            for method in route.methods or ()
        }
        self._by_pattern = [route for route in direct if route.param_convertors]
        self._whole_paths = {route.path for route in routes if isinstance(route, Route) and not route.param_convertors}
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connections pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope["exchange"] = Exchange(scope, receive, send)
        try:
            route, from_path = self._find(scope["method"], exchange.path.removeprefix(exchange.path_prefix))
            if route and route.answer:
                scope["route"] = route
                await exchange.respond(await self._answer(route.answer, exchange, scope, from_path))
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or CLIENT_CLOSED_REQUEST
        except Exception:
            log.exception("request.failed")
            if exchange.status:  # the response has begun: the server breaks it off
                raise
            await exchange.respond(plain_problem(HTTPStatus.INTERNAL_SERVER_ERROR, exchange.request_id))
        finally:
            exchange.log(scope)

    def _find(self, method: str, path: str) -> tuple[JsonRoute | None, Mapping[str, str]]:
        """Return the route with a handler that a request is for, and the parameters in its path."""
        if route := self._by_path.get((method, path)):
            return route, _NO_PARAMETERS
        if path not in self._whole_paths:  # which precede patterns, for any method
            for route in self._by_pattern:
                if method in (route.methods or ()) and (match := route.path_regex.match(path)):
                    return route, match.groupdict()
        return None, _NO_PARAMETERS

    async def _answer(self, answer: Answer, exchange: Exchange, scope: Scope, from_path: Mapping[str, str]) -> Response:
        try:
            return await answer(exchange, **from_path)
        except Exception as error:
            handler = next((self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers), None)
            if handler is None:
                raise
            return await handler(Request(scope), error)  # type: ignore[arg-type, misc, no-any-return] # ours take a request, and wait
