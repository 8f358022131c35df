"""TLS of one connection as a codec between bytes, so that its socket is seen and bounded from the first byte on."""

import ssl
from contextlib import suppress

_RECORD_BYTES = 16 * 1024


class TlsError(Exception):
    """The data is not TLS, or the handshake failed."""


class TlsCodec:
    """The server's side of TLS, which decrypts and encrypts without I/O.

    The event loops' own TLS transport hides the socket: its handshake, its unsent data, and the peer's end of data.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.is_ready = False  # the handshake is complete
        self.eof = False  # the peer has sent close_notify
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def decrypt(self, data: bytes) -> bytes:
        """Return the decrypted data, which may be empty; then send ``pending``. Raise TlsError."""
        if self.eof:  # data after close_notify is ignored (RFC 8446, section 6.1); OpenSSL would buffer it
            return b""
        self._incoming.write(data)
        parts = []
        try:
            if not self.is_ready:
                self._tls.do_handshake()
                self.is_ready = True
            while part := self._tls.read(_RECORD_BYTES):
                parts.append(part)
            self.eof = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.eof = True
        except ssl.SSLError as error:
            raise TlsError from error
        return b"".join(parts)

    def encrypt(self, data: bytes) -> bytes:
        """Return the encrypted data."""
        self._tls.write(data)
        return self._outgoing.read()

    def pending(self) -> bytes:
        """Return what TLS itself has to send: a part of the handshake, or an alert."""
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        """Return the alert that ends the data (RFC 8446, section 6.1); the peer's own is not awaited."""
        if self.is_ready:
            with suppress(ssl.SSLError):  # raised because the peer's alert has not come
                self._tls.unwrap()
        return self._outgoing.read()
