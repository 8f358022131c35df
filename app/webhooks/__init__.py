"""Events that go out to clients as webhooks."""
