"""Delivery of events to clients as webhooks."""

from app.webhooks.deliverer import WebhookDeliverer
from app.webhooks.endpoint import WebhookEndpoint

__all__ = ["WebhookDeliverer", "WebhookEndpoint"]
