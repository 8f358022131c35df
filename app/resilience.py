"""What keeps a failing provider from taking the service with it: a circuit breaker and a bulkhead."""
