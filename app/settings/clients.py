"""What differs for one client from the settings for all, and its webhook."""

from collections.abc import Iterator, Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.settings.validators import Count, Purpose, WebhookSecret
from app.standard_webhooks import parse_secret
from app.verification.channels import Channel
from app.verification.webhooks import EventType
from app.webhooks.addresses import is_private, is_public
from app.webhooks.endpoint import WebhookEndpoint

_MAX_SECRETS = 5  # a rotation needs two


def _check_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises if it is not a port
        is_valid = value.isascii() and value.isprintable() and " " not in value and bool(parts.hostname)
    except ValueError:
        is_valid = False
    if not is_valid or parts.scheme not in {"http", "https"}:
        raise ValueError("must be a URL such as https://shop.example/hooks/phone")
    if "%" in (parts.hostname or ""):
        raise ValueError("must have a host without percent-encoding")
    if parts.username is not None or "#" in value:
        raise ValueError("must have no password and no # in it; the signature proves who sends")
    return value


class ClientSettings(BaseModel):
    """What differs for a client, and its webhook. During a rotation there are several secrets, and each signs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purposes: list[Purpose] | None = None
    channels: list[Channel] | None = None
    calls_per_minute: Count | None = None
    calls_per_day: Count | None = None
    failed_checks: Count | None = None
    webhook_url: Annotated[str, Field(max_length=2048), AfterValidator(_check_url)] | None = None
    webhook_secret: Annotated[
        list[WebhookSecret],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(max_length=_MAX_SECRETS),
    ] = []
    webhook_events: Annotated[list[EventType], Field(min_length=1)] | None = None
    webhook_full_phone: bool = False

    def contradictions(self, *, production: bool) -> Iterator[tuple[str, str]]:
        """Return the mistakes that involve several fields or the mode, as the name of a field and a message."""
        if self.webhook_url is None:
            given = self.model_fields_set & {"webhook_secret", "webhook_events", "webhook_full_phone"}
            if given:
                yield "webhook_url", f"is missing, beside {', '.join(sorted(given))}"
            return
        if not self.webhook_secret:
            yield "webhook_secret", "is missing: whsec_ and the base64 of 24 to 64 random bytes"
        if not production:
            return
        parts = urlsplit(self.webhook_url)
        host = parts.hostname or ""
        if parts.scheme != "https":
            yield "webhook_url", "must begin with https:// in production: it carries phone numbers"
        # Without DNS: the addresses of a name are checked at each connection.
        if is_private(host) or (host.rpartition(".")[2].isdecimal() and not is_public(host)):
            yield "webhook_url", "must not lead to a private address in production"


def make_endpoints(clients: Mapping[str, ClientSettings]) -> dict[str, WebhookEndpoint]:
    """Return the webhook endpoints by client; a client without a URL has none."""
    return {
        name: WebhookEndpoint(
            url=client.webhook_url,
            secrets=tuple(parse_secret(secret.get_secret_value()) for secret in client.webhook_secret),
            events=frozenset(client.webhook_events) if client.webhook_events is not None else None,
            full_phone=client.webhook_full_phone,
        )
        for name, client in clients.items()
        if client.webhook_url is not None
    }
