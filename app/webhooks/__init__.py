"""Delivery of events to clients as webhooks."""
