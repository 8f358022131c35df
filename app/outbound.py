"""What every connection to the outside needs, to a provider or to a webhook's endpoint: a connector and its trust."""

import ssl
from pathlib import Path

import aiohttp
from aiohttp.connector import Connection


class Connector(aiohttp.TCPConnector):
    """A connector that reports a tunnel which a proxy broke off as a connection that was never made.

    aiohttp reports a proxy that hangs up or answers nonsense to a CONNECT like a server that does so to the request.
    """

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list["aiohttp.tracing.Trace"],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp calls it
    ) -> Connection:
        """Make a connection, or take one from the pool."""
        try:
            return await super().connect(req, traces, timeout)
        except (TimeoutError, aiohttp.ClientHttpProxyError, aiohttp.ClientProxyConnectionError, aiohttp.ClientSSLError):
            raise
        except (aiohttp.ClientError, OSError) as error:
            if req.proxy is None or isinstance(error, aiohttp.ClientConnectorCertificateError):
                raise
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            reason = getattr(cause, "strerror", None) or "it hung up, or its answer made no sense"
            raise aiohttp.ClientProxyConnectionError(req.connection_key, OSError(None, reason)) from None


def trust(context: ssl.SSLContext, ca_file: Path | None) -> ssl.SSLContext:
    """Trust the certificate authorities of a PEM file too. Raises OSError (``ssl.SSLError``) where it has none.

    Python 3.13 is strict about extensions of RFC 5280 that many a company's authority lacks. With such a file,
    certificates are checked as Python 3.12 does.
    """
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
