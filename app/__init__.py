"""Plusofon Verify: proves that a person holds a Russian phone number, by a call that speaks a code."""

import os

# FastAPI imports OpenTelemetry where that is installed, which fails at once if this variable names a propagator that is
# not. The service speaks W3C Trace Context and no other.
os.environ.pop("OTEL_PROPAGATORS", None)
