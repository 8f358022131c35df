"""The sections of the settings for how the service is reached, and for what stands in for the world in the sandbox."""

import os
import ssl
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError

from app.settings.fields import Networks, Rub, fits_a_header


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


class SandboxSettings(_Section):
    """The provider of the sandbox: its account, the token that it accepts if not any, and how fast its calls are."""

    balance_rub: Rub = Decimal(10_000)
    access_token: Annotated[SecretStr, AfterValidator(fits_a_header)] | None = None
    pace_seconds: Annotated[float, Field(gt=0, le=60)] = 1
