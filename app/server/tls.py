"""TLS of one connection as a codec between bytes, so that its socket is seen and bounded from the first byte on."""

import ssl
from contextlib import suppress

_RECORD_BYTES = 16 * 1024


class TlsError(Exception):
    """What came is no TLS, or none that is spoken here."""


class TlsCodec:
    """The server's side of TLS: what comes is decrypted, what goes is encrypted, and nothing waits for anything.

    The event loops' own TLS is a transport that hides the socket: its handshake, what it has not sent, and the end of
    what the peer sends.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.is_ready = False  # the handshake is done
        self.eof = False  # the peer has said that it sends nothing more
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def decrypt(self, data: bytes) -> bytes:
        """Return what the data says, which may be nothing yet. Raise TlsError. ``pending`` has what to answer."""
        if self.eof:  # what follows is ignored (RFC 8446, section 6.1); OpenSSL would keep it and never read it
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
        """Return the data as it goes to the peer."""
        self._tls.write(data)
        return self._outgoing.read()

    def pending(self) -> bytes:
        """Return what is to be sent for TLS itself: of its handshake, or why it failed."""
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """Return the alert that nothing more is sent (RFC 8446, section 6.1); the peer's own is not waited for."""
        if self.is_ready:
            with suppress(ssl.SSLError):  # which says that the peer's did not come
                self._tls.unwrap()
        return self._outgoing.read()
