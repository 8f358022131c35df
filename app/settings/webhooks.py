"""How a client's webhook is set, what is wrong with it if it is, and the endpoints that follow."""

from collections.abc import Iterator, Mapping
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError

from app.settings.fields import is_webhook_secret
from app.standard_webhooks import parse_secret
from app.verification.webhooks import EventType
from app.webhooks import WebhookEndpoint
from app.webhooks.addresses import is_private, is_public

_MOST_SECRETS = 5  # a change needs two


def _is_url(value: str) -> str:
    """Let a URL through that a webhook can be sent to."""
    parts = _split(value)
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise PydanticCustomError("webhook_url", "must be a URL such as https://shop.example/hooks/phone")
    if "%" in parts.hostname:
        raise PydanticCustomError("webhook_url", "must have a host without percent-encoding")
    if parts.username is not None or "#" in value:
        raise PydanticCustomError("webhook_url", "must have no password and no # in it; the signature proves who sends")
    return value


def _split(value: str) -> SplitResult | None:
    if not value.isascii() or not value.isprintable() or " " in value:
        return None
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises where it is none
    except ValueError:
        return None
    return parts


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class WebhookFields(BaseModel):
    """What a client's settings say of its webhook. Several secrets all sign, while they are changed."""

    model_config = ConfigDict(frozen=True)

    webhook_url: Annotated[str, Field(max_length=2048), AfterValidator(_is_url)] | None = None
    webhook_secret: Annotated[
        list[Annotated[SecretStr, AfterValidator(is_webhook_secret)]],
        BeforeValidator(_listed),
        Field(max_length=_MOST_SECRETS),
    ] = []
    webhook_events: Annotated[list[EventType], Field(min_length=1)] | None = None
    webhook_full_phone: bool = False

    def webhook_contradictions(self, *, production: bool) -> Iterator[tuple[str, str]]:
        """Find what is right alone and wrong together: the name of the field, and what is wrong with it."""
        if self.webhook_url is None:
            given = self.model_fields_set & {"webhook_secret", "webhook_events", "webhook_full_phone"}
            if given:
                yield "webhook_url", f"is missing, beside {', '.join(sorted(given))}"
            return
        if not self.webhook_secret:
            yield "webhook_secret", "is missing: whsec_ and the base64 of 24 to 64 random bytes"
        if production:
            yield from _risks(urlsplit(self.webhook_url))

    def webhook_endpoint(self) -> WebhookEndpoint | None:
        """Make the endpoint, if there is one."""
        if self.webhook_url is None:
            return None
        return WebhookEndpoint(
            url=self.webhook_url,
            secrets=tuple(parse_secret(secret.get_secret_value()) for secret in self.webhook_secret),
            events=frozenset(self.webhook_events) if self.webhook_events is not None else None,
            full_phone=self.webhook_full_phone,
        )


def _risks(parts: SplitResult) -> Iterator[tuple[str, str]]:
    host = parts.hostname or ""
    if parts.scheme != "https":
        yield "webhook_url", "must begin with https:// in production: it carries phone numbers"
    # Only what is seen without asking: where a name leads is checked whenever a connection is made.
    if is_private(host) or (host.rpartition(".")[2].isdecimal() and not is_public(host)):
        yield "webhook_url", "must not lead to a private address in production"


def make_endpoints(clients: Mapping[str, WebhookFields]) -> dict[str, WebhookEndpoint]:
    """Make the endpoints of those clients that have one."""
    made = {name: client.webhook_endpoint() for name, client in clients.items()}
    return {name: endpoint for name, endpoint in made.items() if endpoint}
