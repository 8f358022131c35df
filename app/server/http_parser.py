"""Parses HTTP/1.1 requests (RFC 9112) strictly: what two parsers could read differently is refused, not repaired."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

CRLF = b"\r\n"
HEAD_END = b"\r\n\r\n"

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_FRAMING = frozenset({b"connection", b"content-length", b"expect", b"host", b"transfer-encoding"})

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
# The third group takes what is no field, obs-fold and a bare CR or LF among it, so that nothing is skipped. White space
# is in both classes before it: without possessive quantifiers (``*+``) a field of n spaces would be tried in n² ways.
_FIELDS = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)\r\n|(.+)", re.DOTALL)
_TARGET = re.compile(rb"(?:(?i:https?)://([^/?#]+))?(/[^?#]*)?(?:\?([^#]*))?")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~%-]+)(?::[0-9]{0,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*")
# Control characters, LF without CR and CR without LF: never part of a head, so no use in waiting for its end.
_NEVER_IN_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?![\n]|\Z)")

_CHUNK_LINE_BYTES = 1024  # of a chunk's size and its extensions, which are read and ignored


class HttpError(Exception):
    """A request that is refused before the application sees it; the connection cannot be used any further."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(slots=True)
class LengthBody:
    """A body of a known length; ``left`` is how many bytes of it have not come."""

    left: int

    @property
    def is_complete(self) -> bool:
        """Whether all of it has come."""
        return not self.left

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the part of the data that belongs to the body, and what follows it."""
        body = data[: self.left]
        self.left -= len(body)
        return body, data[len(body) :]


@dataclass(slots=True)
class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1); the trailers are checked, counted and dropped.

    ``read`` returns a piece of a line that has not come whole as part of the rest: give it back with what follows.
    """

    max_trailer_bytes: int
    is_complete: bool = False
    _chunk_left: int = 0
    _after_chunk: bool = False
    _in_trailers: bool = False
    _trailer_bytes: int = 0

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the decoded body in the data, and what is not read yet. Raise HttpError."""
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


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The request line and the header fields, and what they say about the body and the connection."""

    method: str
    path: bytes
    query: bytes
    is_http_1_0: bool
    headers: list[tuple[bytes, bytes]]
    body: LengthBody | ChunkedBody
    keep_alive: bool
    expects_continue: bool


def check_unfinished_head(data: bytes, start: int) -> None:
    """Raise HttpError for what cannot become a head any more, looking at the data from ``start``."""
    if _NEVER_IN_HEAD.search(data, start):
        raise HttpError(HTTPStatus.BAD_REQUEST)


def parse_head(data: bytes, *, max_trailer_bytes: int) -> RequestHead:
    """Parse a head, from the request line to the CRLF of the last field.

    An ``Upgrade`` is one field among others: none is supported, so the request is served as if it was not there
    (RFC 9110, section 7.8).

    Raises:
        HttpError: 400; 501 for a method and 505 for a version that is not known here.

    """
    line = _REQUEST_LINE.match(data)
    if not line:
        raise HttpError(HTTPStatus.BAD_REQUEST)
    name, raw_target, major, minor = line.groups()
    if major != b"1" or minor not in b"01":
        raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    headers: list[tuple[bytes, bytes]] = []
    framing: dict[bytes, list[bytes]] = {}
    for field, value, other in _FIELDS.findall(data, line.end()):
        if other:
            raise HttpError(HTTPStatus.BAD_REQUEST)
        header = (field.lower(), value.rstrip(b" \t"))
        headers.append(header)
        if header[0] in _FRAMING:
            framing.setdefault(header[0], []).append(header[1])
    method = name.decode()
    if method not in _METHODS:
        raise HttpError(HTTPStatus.NOT_IMPLEMENTED)
    is_http_1_0 = minor == b"0"
    hosts = framing.get(b"host", [])
    if len(hosts) != 1 and not (is_http_1_0 and not hosts):
        raise HttpError(HTTPStatus.BAD_REQUEST)
    authority, path, query = _parse_target(method, raw_target)
    if authority:
        hosts.append(authority)
    if not all(map(_HOST.fullmatch, hosts)) or len(set(hosts)) > 1:
        raise HttpError(HTTPStatus.BAD_REQUEST)
    options = {option.strip(b" \t").lower() for value in framing.get(b"connection", ()) for option in value.split(b",")}
    return RequestHead(
        method=method,
        path=path,
        query=query,
        is_http_1_0=is_http_1_0,
        headers=headers,
        body=_body(framing, is_http_1_0=is_http_1_0, max_trailer_bytes=max_trailer_bytes),
        keep_alive=not is_http_1_0 and b"close" not in options,
        expects_continue=not is_http_1_0
        and [value.lower() for value in framing.get(b"expect", ())] == [b"100-continue"],
    )


def _parse_target(method: str, target: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the authority (of the absolute form alone), the path and the query. Raise HttpError."""
    if method == "OPTIONS" and target == b"*":
        return b"", target, b""
    found = _TARGET.fullmatch(target)
    if not found:
        raise HttpError(HTTPStatus.BAD_REQUEST)
    authority, path, query = found.groups(b"")
    if not (authority or path):
        raise HttpError(HTTPStatus.BAD_REQUEST)
    return authority, path or b"/", query


def _body(
    framing: Mapping[bytes, Sequence[bytes]], *, is_http_1_0: bool, max_trailer_bytes: int
) -> LengthBody | ChunkedBody:
    """Return what reads the body (RFC 9112, section 6.3). Raise HttpError where its length is not certain."""
    codings, lengths = framing.get(b"transfer-encoding"), framing.get(b"content-length")
    if codings:
        if lengths or is_http_1_0 or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise HttpError(HTTPStatus.BAD_REQUEST)
        return ChunkedBody(max_trailer_bytes)
    if not lengths:
        return LengthBody(0)
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise HttpError(HTTPStatus.BAD_REQUEST)
    return LengthBody(int(lengths[0]))
