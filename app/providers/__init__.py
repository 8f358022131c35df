"""The providers that place calls, and what protects the service from their failures."""
