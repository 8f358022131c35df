"""The sections of the settings for how the service is reached, and for what stands in for the world in the sandbox."""

import os
import re
import ssl
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError

from app.settings.fields import Networks, Rub, fits_a_header

_PROXY = re.compile(r"http://(?:[^/@?#\s]+@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?/?", re.ASCII)
_LAST_PORT = 65535


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True)


def _is_readable(value: Path) -> Path:
    """Let a file through that can be read."""
    try:
        readable = value.is_file() and os.access(value, os.R_OK)
    except (OSError, ValueError):  # a name too long, or with a NUL
        readable = False
    if not readable:
        raise PydanticCustomError("unreadable", "cannot be read")
    return value


_ReadableFile = Annotated[Path, AfterValidator(_is_readable)]


class TlsSettings(_Section):
    """HTTPS by the service itself, where no proxy brings it."""

    cert_file: _ReadableFile | None = None
    key_file: _ReadableFile | None = None

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Find what is right alone and wrong together: the name of the field, and what is wrong with it."""
        if self.cert_file is None or self.key_file is None:
            if self.cert_file or self.key_file:
                given, missing = ("cert", "key") if self.cert_file else ("key", "cert")
                yield f"{missing}_file", f"is missing, beside TLS_{given.upper()}_FILE"
            return
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            # Without a password to try, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(self.cert_file, self.key_file, password=lambda: "")
        except (ssl.SSLError, OSError):
            yield "cert_file", "must be a certificate in PEM, and TLS_KEY_FILE its private key without a password"


class ProxySettings(_Section):
    """Which proxies are believed when they say whose request they pass on."""

    addresses: Networks = []


def _is_proxy(value: SecretStr) -> SecretStr:
    """Let the URL of an HTTP proxy through."""
    match = _PROXY.fullmatch(value.get_secret_value())
    if not match or int(match[1] or 80) > _LAST_PORT:
        raise PydanticCustomError(
            "proxy", "must be http://host:port or http://user:password@host:port; percent-encode the password"
        )
    return value


def _has_authorities(value: Path) -> Path:
    """Let a file through that has certificates."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=value)
    except OSError:  # of the file, or of OpenSSL
        raise PydanticCustomError("authorities", "must be a file with certificates in PEM that can be read") from None
    return value


class OutboundSettings(_Section):
    """How the service reaches others, which are Plusofon, a relay and webhooks."""

    proxy: Annotated[SecretStr, AfterValidator(_is_proxy)] | None = None
    ca_file: Annotated[Path, AfterValidator(_has_authorities)] | None = None

    @property
    def proxy_url(self) -> str | None:
        """The proxy with its password, if there is one.

        aiohttp writes user and password in Latin-1, while proxies, as curl and browsers, have UTF-8 (RFC 7617). So each
        byte beyond ASCII is written as the character that Latin-1 has for it.
        """
        if self.proxy is None:
            return None
        url = re.sub("[^\x00-\x7f]", lambda character: quote(character[0]), self.proxy.get_secret_value())
        return re.sub("%([89A-Fa-f][0-9A-Fa-f])", lambda byte: quote(chr(int(byte[1], 16))), url)


class SandboxSettings(_Section):
    """The provider of the sandbox: its account, the token that it accepts if not any, and how fast its calls are."""

    balance_rub: Rub = Decimal(10_000)
    access_token: Annotated[SecretStr, AfterValidator(fits_a_header)] | None = None
    pace_seconds: Annotated[float, Field(gt=0, le=60)] = 1
