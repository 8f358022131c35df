"""Plusofon Verify: proves that a person holds a Russian phone number, by a call that speaks a code."""

import os

# FastAPI imports OpenTelemetry where that is installed, which fails at once if this variable names a propagator that is
# not. The service speaks W3C Trace Context and no other.
os.environ.pop("OTEL_PROPAGATORS", None)

# Browsers write the keys of their TLS connections there, for debugging. So would Python, from the import of aiohttp on,
# and codes and tokens could be read off the network; or it fails, if the file cannot be written.
os.environ.pop("SSLKEYLOGFILE", None)
