"""A strict parser of HTTP/1.1 requests (RFC 9112): what two parsers could read differently is refused."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

CRLF = b"\r\n"
HEAD_END = b"\r\n\r\n"

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
# The third group matches anything that is not a field line (RFC 9112, section 5), such as obs-fold or a bare CR or LF,
# so that nothing is skipped. As both classes before it match white space, the quantifiers are possessive (``*+``):
# otherwise a field of n spaces would be tried in n² ways.
_FIELDS = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)\r\n|(.+)", re.DOTALL)
_TARGET = re.compile(rb"(?:(?i:https?)://([^/?#]+))?(/[^?#]*)?(?:\?([^#]*))?")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~%-]+)(?::[0-9]{0,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")
# Control characters, LF without CR, CR without LF (RFC 9112, section 2.2): a head is refused before it is complete.
NEVER_IN_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?![\n]|\Z)")

_CHUNK_LINE_BYTES = 1024  # for the size of a chunk and its extensions, which are ignored (RFC 9112, section 7.1.1)


class HttpError(Exception):
    """The request is refused before the application sees it, and the connection must be closed."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(slots=True)
class LengthBody:
    """A body of known length; ``left`` is the number of bytes still to come."""

    left: int

    @property
    def is_complete(self) -> bool:
        """Whether the whole body was read."""
        return not self.left

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the part of the data that belongs to the body, and the rest."""
        body = data[: self.left]
        self.left -= len(body)
        return body, data[len(body) :]


@dataclass(slots=True)
class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1); the trailers are checked, limited in size, and dropped."""

    max_trailer_bytes: int
    is_complete: bool = False
    _chunk_left: int = 0
    _after_chunk: bool = False
    _in_trailers: bool = False
    _trailer_bytes: int = 0

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the decoded body in the data, and the rest, to be passed again with the next data. Raise HttpError."""
        body = []
        position = 0
        while not self.is_complete:
            if self._chunk_left:
                part = data[position : position + self._chunk_left]
                if not part:
                    break
                body.append(part)
                self._chunk_left -= len(part)
                self._after_chunk = not self._chunk_left
                position += len(part)
            elif self._after_chunk:
                end = data[position : position + 2]
                if not CRLF.startswith(end):
                    raise HttpError(HTTPStatus.BAD_REQUEST)
                if end != CRLF:
                    break
                self._after_chunk = False
                position += 2
            else:
                end_of_line = data.find(CRLF, position)
                if end_of_line < 0:
                    self._check_unfinished(data[position:])
                    break
                self._read_line(data[position:end_of_line])
                position = end_of_line + 2
        return b"".join(body), data[position:]

    def _read_line(self, line: bytes) -> None:
        if self._in_trailers:
            self._trailer_bytes += len(line) + 2
            self._check_unfinished(b"")
            if line and not _TRAILER.fullmatch(line):
                raise HttpError(HTTPStatus.BAD_REQUEST)
            self.is_complete = not line
        else:
            size = _CHUNK_SIZE.fullmatch(line)
            if not size or len(line) > _CHUNK_LINE_BYTES:
                raise HttpError(HTTPStatus.BAD_REQUEST)
            self._chunk_left = int(size[1], 16)
            self._in_trailers = not self._chunk_left

    def _check_unfinished(self, line: bytes) -> None:
        if self._in_trailers and self._trailer_bytes + len(line) > self.max_trailer_bytes:
            raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if b"\n" in line or (not self._in_trailers and len(line) > _CHUNK_LINE_BYTES):
            raise HttpError(HTTPStatus.BAD_REQUEST)


@dataclass(slots=True)  # not frozen: to make it would take three times as long
class RequestHead:
    """The request line and the header fields, with what they mean for the body and the connection."""

    method: str
    path: bytes
    query: bytes
    is_http_1_0: bool
    headers: list[tuple[bytes, bytes]]
    body: LengthBody | ChunkedBody
    keep_alive: bool
    expects_continue: bool


def parse_head(data: bytes, *, max_trailer_bytes: int) -> RequestHead:
    """Return the head in the data, from the request line to the CRLF of the last field.

    ``Upgrade`` is ignored, as the server supports none (RFC 9110, section 7.8). Raises HttpError: 400; 501 for an
    unknown method, 505 for an unknown version.
    """
    line = _REQUEST_LINE.match(data)
    if not line:
        raise HttpError(HTTPStatus.BAD_REQUEST)
    name, raw_target, major, minor = line.groups()
    if major != b"1" or minor not in b"01":
        raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    found = _FIELDS.findall(data, line.end())
    headers = [(field.lower(), value.rstrip(b" \t")) for field, value, other in found if not other]
    fields = dict(headers)
    if len(headers) < len(found) or (len(fields) < len(headers) and _repeats_framing(headers)):
        raise HttpError(HTTPStatus.BAD_REQUEST)
    method = name.decode()
    if method not in _METHODS:
        raise HttpError(HTTPStatus.NOT_IMPLEMENTED)
    is_http_1_0 = minor == b"0"
    authority, path, query = _parse_target(method, raw_target)
    host = fields.get(b"host")
    if not (_HOST.fullmatch(host) if host is not None else is_http_1_0):  # RFC 9112, section 3.2
        raise HttpError(HTTPStatus.BAD_REQUEST)
    if authority and (not _HOST.fullmatch(authority) or host not in {None, authority}):
        raise HttpError(HTTPStatus.BAD_REQUEST)
    closes = b"connection" in fields and b"close" in {
        option.strip(b" \t").lower()
        for field, value in headers
        if field == b"connection"
        for option in value.split(b",")
    }
    return RequestHead(
        method=method,
        path=path,
        query=query,
        is_http_1_0=is_http_1_0,
        headers=headers,
        body=_body(fields, is_http_1_0=is_http_1_0, max_trailer_bytes=max_trailer_bytes),
        keep_alive=not is_http_1_0 and not closes,
        expects_continue=not is_http_1_0 and fields.get(b"expect", b"").lower() == b"100-continue",
    )


def _repeats_framing(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    names = [name for name, _ in headers]
    return any(names.count(name) > 1 for name in (b"content-length", b"host", b"transfer-encoding"))


def _parse_target(method: str, target: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the authority, path and query of a request target (RFC 9112, section 3.2). Raise HttpError.

    Only the absolute form has an authority.
    """
    if method == "OPTIONS" and target == b"*":
        return b"", target, b""
    found = _TARGET.fullmatch(target)
    if not found:
        raise HttpError(HTTPStatus.BAD_REQUEST)
    authority, path, query = found.groups(b"")
    if not (authority or path):
        raise HttpError(HTTPStatus.BAD_REQUEST)
    return authority, path or b"/", query


def _body(fields: Mapping[bytes, bytes], *, is_http_1_0: bool, max_trailer_bytes: int) -> LengthBody | ChunkedBody:
    """Return a reader of the body (RFC 9112, sections 6.1 and 6.3). Raise HttpError if its length is ambiguous."""
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if coding is not None:
        if length is not None or is_http_1_0 or coding.lower() != b"chunked":
            raise HttpError(HTTPStatus.BAD_REQUEST)
        return ChunkedBody(max_trailer_bytes)
    if length is not None and not _LENGTH.fullmatch(length):
        raise HttpError(HTTPStatus.BAD_REQUEST)
    return LengthBody(int(length or 0))
