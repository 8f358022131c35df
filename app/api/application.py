"""The FastAPI application, with a short way to the routes that are called most."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

from app.api.middleware import RequestMiddleware
from app.api.routing import JsonRoute


class Application(FastAPI):
    """A FastAPI application with ``RequestMiddleware`` in place of several of the framework's own middlewares.

    ``RequestMiddleware`` answers unhandled errors and bounds the body. Middlewares that are added stand around it.
    ``path_prefix`` is what a proxy strips from the paths of the requests.
    """

    path_prefix = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. By the ASGI specification its path begins with ``root_path``."""
        if scope["type"] == "http":
            scope["root_path"], scope["path"] = self.path_prefix, self.path_prefix + scope["path"]
        await super().__call__(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Return what serves a request; Starlette calls it once, when everything is added."""
        handlers = self.exception_handlers
        app: ASGIApp = ExceptionMiddleware(AsyncExitStackMiddleware(self.router), handlers)
        routes = [route for route in self.routes if isinstance(route, JsonRoute)]
        app = RequestMiddleware(_DirectRoutes(app, routes, handlers))
        for middleware, arguments, options in reversed(self.user_middleware):
            app = middleware(app, *arguments, **options)
        return app


class _DirectRoutes:
    """Passes a request for a ``JsonRoute``, by its method and path, to the handler, and all others to FastAPI.

    The wrappers of FastAPI and Starlette around a handler cost a fifth of a check. Of what they do these routes need
    one thing, which is done here: an error is answered by the application's handler of its class.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[JsonRoute], handlers: Mapping[Any, ExceptionHandler]) -> None:
        self._app = app
        self._routes = {
            (method, route.path): (route, route.answer)
            for route in routes
            if route.answer
            for method in route.methods or ()
        }
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = None
        if scope["type"] == "http":
            found = self._routes.get((scope["method"], scope["path"].removeprefix(scope["root_path"])))
        if not found:
            await self._app(scope, receive, send)
            return
        scope["route"], answer = found
        request = Request(scope, receive)
        try:
            response = await answer(request)
        except Exception as error:
            handler = next((self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers), None)
            if handler is None:
                raise
            response = await handler(request, error)  # type: ignore[arg-type, misc] # ours take a request, and wait
        await response(scope, receive, send)
