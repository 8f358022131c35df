"""The route class of verifications: described by FastAPI, but read without its general machinery."""

import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, get_args

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.api.dependencies import Client, ContainerDep, authenticate, container_of, header_values

_PARAMETERS = {"http": Request, "client": Client, "container": ContainerDep}  # what handle passes, beside the body
_BYTE_ORDER_MARK = 0xEF  # what begins with this or more is no JSON in UTF-8; a mark begins with 0xEF, 0xFE or 0xFF


class JsonRoute(APIRoute):
    """A route whose endpoint takes exactly ``body`` (one model), ``http``, ``client`` and ``container``.

    FastAPI describes it, but to solve its dependencies and to parse the media type as an e-mail, and the body as JSON
    and then as a model, would cost as much as the rest of a check. So these four are found here: first the client, then
    the body, straight from its bytes. A route without a body is served by FastAPI.

    ``answer`` is the handler, if the path has no parameters; ``Application`` calls it without FastAPI's wrappers.
    """

    answer: Callable[[Request], Awaitable[Response]] | None = None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the request handler. Raises TypeError if the route declares what would be described but ignored."""
        if self.body_field is None:
            return super().get_route_handler()
        endpoint, model = self.endpoint, self._require_supported(self.body_field.field_info.annotation)

        async def handle(http: Request) -> Response:
            container = container_of(http)
            client = authenticate(http, container.keys.clients)
            body = await _read(http, model)
            response: Response = await endpoint(body=body, http=http, client=client, container=container)
            return response

        if not self.param_convertors:
            self.answer = handle
        return handle

    def _require_supported(self, described: object) -> type[BaseModel]:
        """Return the model of the body. Raises TypeError."""
        declared = inspect.signature(self.endpoint, eval_str=True).parameters.values()
        parameters = {parameter.name: parameter.annotation for parameter in declared}
        body = parameters.pop("body", None)
        model = next(iter(get_args(body)), body)
        # A body that is embedded has a model of its own, which FastAPI makes.
        if not (inspect.isclass(model) and issubclass(model, BaseModel) and described is model):
            raise TypeError(f"{self.path}: the body of a JsonRoute is one model, `body`")
        wrong = {name for name in parameters | _PARAMETERS if parameters.get(name) != _PARAMETERS.get(name)}
        if self.dependencies:
            wrong.add("dependencies")
        if wrong:
            raise TypeError(f"{self.path}: a JsonRoute takes body, {', '.join(_PARAMETERS)}; wrong: {sorted(wrong)}")
        return model


async def _read(http: Request, model: type[BaseModel]) -> BaseModel:
    """Read the body. Raises RequestValidationError or ClientDisconnect."""
    message = await http.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    content: bytes = message.get("body", b"")
    if message.get("more_body"):
        content += await http.body()
    http.scope["state"]["body"] = content
    media_types = header_values(http.scope, b"content-type")
    is_json = content and media_types and media_types[0].partition(";")[0].strip().lower() == "application/json"
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
