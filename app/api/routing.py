"""How the routes of a verification are served: described by FastAPI, but read without its general machinery."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from app.api.auth import authenticate
from app.api.dependencies import container_of

_BYTE_ORDER_MARK = 0xEF  # what begins with this or more is no JSON in UTF-8; a mark begins with 0xEF, 0xFE or 0xFF


class JsonRoute(APIRoute):
    """A route whose endpoint takes ``body``, ``http``, ``client`` and ``container``; one without a body, as any other.

    FastAPI describes it from its signature. Finding these four on each request (solving dependencies, parsing the media
    type as an e-mail, the body as JSON and then as a model) would cost as much as the rest of a check, so that is done
    here: first the key, then the body, straight from its bytes.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Make the function that answers; FastAPI's documented place to step in."""
        if self.body_field is None:
            return super().get_route_handler()
        endpoint, model = self.endpoint, self.body_field.field_info.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"the body of {self.path} is no model")

        async def handle(http: Request) -> Response:
            container = container_of(http)
            client = authenticate(http, container.keys.clients)
            body = await _read(http, model)
            response: Response = await endpoint(body=body, http=http, client=client, container=container)
            return response

        return handle


async def _read(http: Request, model: type[BaseModel]) -> BaseModel:
    """Read the body. Raises RequestValidationError."""
    content = await http.body()
    media_type, _, _ = http.headers.get("content-type", "").partition(";")
    is_json = content and media_type.strip().lower() == "application/json"
    if is_json and content[0] >= _BYTE_ORDER_MARK:
        content = content.decode(json.detect_encoding(content), errors="replace").encode()
    try:
        # Bytes under another name are no model: the error says what to send.
        return model.model_validate_json(content) if is_json else model.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found]) from None
