"""``serve`` and ``demo``: the service as one process or several, until a signal stops it."""

import errno
import logging
import os
import signal
import socket
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from math import ceil
from typing import Annotated, Any

import typer
import uvicorn
from pydantic import SecretStr
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.cli.common import examples
from app.main import open_tracing
from app.sandbox.embedded import EmbeddedServer, EmbeddedServerUnavailable
from app.sandbox.run_file import RunningSandbox, run_file
from app.server.connections import HttpLimits
from app.server.http_protocol import HttpServer
from app.server.worker import make_app_of
from app.settings import Mode, Settings, SettingsError, given_settings, load_settings
from app.settings.misspelt import misspelt_settings
from app.settings.redact import redacted_settings
from app.telemetry.exposition import FOLDER_VARIABLE, shared_between_workers
from app.telemetry.logging import configure_logging

cli = typer.Typer()

log = logging.getLogger(__name__)

_WORKER = "app.server.worker:make_app"
_FOREIGN_HOST = "HOST must be an address of this machine."
_NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_OWN_DESCRIPTORS = 50  # of files, Redis and the event loop; connections to providers come on top

# Of `demo`, unless they are given: a developer calls the same phone all day, and no call costs money.
_DEMO_LIMITS = {
    "CALL_COOLDOWNS_SECONDS": "2",
    "LIMIT_CALLS_PER_PHONE_HOUR": "1000",
    "LIMIT_CALLS_PER_PHONE_DAY": "1000",
    "LIMIT_CALLS_PER_ADDRESS": "1000",
    "LIMIT_CALLS_PER_RANGE": "1000",
    "LIMIT_FAILED_CHECKS_PER_PHONE": "1000",
    "GUARD_MIN_CALLS": "1000",
}

Host = Annotated[str | None, typer.Option(help="Address to listen on; HOST in the environment.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; PORT in the environment.")]
Workers = Annotated[
    int | None, typer.Option(help="Processes that serve, about one a core; WORKERS in the environment.")
]
TlsCert = Annotated[str | None, typer.Option(help="Certificate chain in PEM, for HTTPS; TLS_CERT_FILE.")]
TlsKey = Annotated[str | None, typer.Option(help="Its private key in PEM; TLS_KEY_FILE.")]


@cli.command(epilog=examples("serve --workers 4", "serve --host 0.0.0.0 --tls-cert chain.pem --tls-key key.pem"))
def serve(
    host: Host = None, port: Port = None, workers: Workers = None, tls_cert: TlsCert = None, tls_key: TlsKey = None
) -> None:
    """Serve the API, in production mode unless MODE differs.

    With SIGTERM it takes no new requests, finishes those in progress, and ends. With several workers SIGHUP replaces
    them one by one, which reads the settings and a renewed certificate anew; one worker takes no notice of it.
    """
    _serve(_settings_with(HOST=host, PORT=port, WORKERS=workers, TLS_CERT_FILE=tls_cert, TLS_KEY_FILE=tls_key))


@cli.command(epilog=examples("demo", "demo --port 8080"))
def demo(host: Host = None, port: Port = None) -> None:
    """Serve the sandbox, which needs no settings.

    It has a Redis and a telephone network of its own: nobody is called. Its limits are looser than those of production,
    unless they are set. Commands in other shells of the same user find it: attempts, stats, verifications, guard,
    events, forget.
    """
    looser = {name: value for name, value in _DEMO_LIMITS.items() if name not in given_settings()}
    settings = _settings_with(MODE=Mode.SANDBOX, WORKERS=1, HOST=host, PORT=port, **looser)
    _serve(settings, banner=_banner(settings, looser))


def _settings_with(**options: object) -> Settings:
    """Return the settings; ``options`` override the environment, also of worker processes. Raises SettingsError."""
    os.environ.update({name: str(value) for name, value in options.items() if value is not None})
    return load_settings()


class _Server(uvicorn.Server):
    """Logs the address once it listens, which uvicorn does not do for sockets that are given."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve."""
        await super().startup(sockets)
        self._log_started_message(sockets or [])


class _Workers(Multiprocess):
    """Notices at once when a worker dies, and stops to listen with its workers.

    A connection made after that would wait until this process ends, unanswered.
    """

    def keep_subprocess_alive(self) -> None:
        """Ask each worker whether it lives, and replace those that do not answer."""
        for worker in self.processes:
            worker.child_conn.close()  # open in this process too, it would keep the answer of a dead worker waited for
        super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        """Stop to listen, and end the workers."""
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def _serve(settings: Settings, *, banner: str = "") -> None:
    """Serve until a signal stops it; requests in progress are finished. Raises SettingsError."""
    sockets = _listen(settings.host, settings.port)
    if banner:
        typer.echo(banner)
    configure_logging(level=settings.log.level, style=settings.log.format)
    log.info(
        "service.starting",
        extra={
            "version": version("plusofon-verify"),
            "mode": settings.mode,
            "address": settings.url_of(settings.host),
            "workers": settings.workers,
            "settings": redacted_settings(settings),
        },
    )
    if unknown := misspelt_settings():
        log.warning("service.settings_unknown", extra={"names": list(unknown)})
    # Uvicorn handles the signal while it serves, and then raises it once more.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    started = _serve_alone(settings, sockets) if settings.workers == 1 else _serve_by_workers(settings, sockets)
    if not started:
        sys.exit(STARTUP_FAILURE)


def _serve_alone(settings: Settings, sockets: list[socket.socket]) -> bool:
    """Serve in this process; return whether it could start."""
    if not sys.stderr.isatty():  # a terminal that is closed sends it too
        reason = "only several WORKERS are replaced; start it anew"
        signal.signal(signal.SIGHUP, lambda *_: log.warning("service.reload_ignored", extra={"reason": reason}))
    with ExitStack() as stack:
        if settings.mode is Mode.SANDBOX:
            settings = stack.enter_context(_open_to_commands(settings))
        server = _Server(uvicorn.Config(make_app_of(settings), **uvicorn_options(settings)))
        with suppress(KeyboardInterrupt):
            server.run(sockets)
        return server.started


@contextmanager
def _open_to_commands(settings: Settings) -> Iterator[Settings]:
    """Let commands in other shells find this sandbox; yield its settings, with the Redis that they reach too.

    Raises SettingsError: there is no Redis to embed.
    """
    with ExitStack() as stack:
        if settings.redis.url is None:
            try:
                url = SecretStr(stack.enter_context(EmbeddedServer()).url)
            except EmbeddedServerUnavailable as error:
                raise SettingsError([str(error)]) from None
            settings = settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": url})})
        assert settings.redis.url  # noqa: S101 - for mypy
        sandbox = RunningSandbox(
            url=settings.local_url,
            port=settings.port,
            redis_url=settings.redis.url.get_secret_value(),
            secret_key=settings.secret_keys[0].decode(),
            names_key=settings.names_secret.decode(),
        )
        stack.enter_context(run_file(sandbox))
        yield settings


def _serve_by_workers(settings: Settings, sockets: list[socket.socket]) -> bool:
    """Serve in several processes; return whether all could start. Raises SettingsError."""
    with ExitStack() as stack:
        try:
            stack.enter_context(shared_between_workers())
        except OSError as error:
            mistake = f"{FOLDER_VARIABLE} must name a folder that the service may write to: {error.strerror}."
            raise SettingsError([mistake]) from None
        if tracing := open_tracing(settings):  # checked here: otherwise one worker after the other would fail
            tracing.close()
        # Given by name, because each worker makes an application of its own, from the environment.
        config = uvicorn.Config(_WORKER, factory=True, **uvicorn_options(settings))
        workers = _Workers(config, sockets=sockets)
        workers.run()  # ends all workers when one could not start
    return not any(worker.exitcode == STARTUP_FAILURE for worker in workers.processes)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Open the sockets to serve on, the same for one worker and for several. Raises SettingsError."""
    try:
        found = set(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))
    except (OSError, UnicodeError):  # UnicodeError: not a valid host name
        raise SettingsError([_FOREIGN_HOST]) from None
    opened: list[socket.socket] = []
    failures: list[OSError] = []
    for family, kind, protocol, _, address in found:
        try:
            opened.append(_bind(socket.socket(family, kind, protocol), address, alone=len(found) == 1))
        except OSError as error:
            failures.append(error)
    # A name may have addresses that this machine does not have: localhost without IPv6.
    serious = [error for error in failures if not opened or error.errno not in _NO_ADDRESS]
    if serious:
        for listener in opened:
            listener.close()
        raise SettingsError([_why_bind_failed(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", serious[0])])
    return opened


def _bind(listener: socket.socket, address: tuple[Any, ...], *, alone: bool) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:  # :: takes IPv4 too, whatever the system's default is
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not alone)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _why_bind_failed(where: str, error: OSError) -> str:
    if error.errno in _NO_ADDRESS:
        return _FOREIGN_HOST
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use; choose another with --port (make run PORT=8001)."
    return f"{where} cannot be listened on: {os.strerror(error.errno or 0)}."


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Return the options of uvicorn, also those that it would otherwise read from the environment."""
    # A socket for IPv4 and IPv6 reports an IPv4 peer as ::ffff:a.b.c.d.
    mapped = [
        f"::ffff:{network.network_address}/{96 + network.prefixlen}"
        for network in settings.proxy_addresses
        if network.version == 4  # noqa: PLR2004 - the name of a protocol
    ]
    proxies = [*map(str, settings.proxy_addresses), *mapped]
    return {
        "host": settings.host,
        "port": settings.port,
        "workers": settings.workers,
        "loop": "uvloop",
        "http": HttpServer(
            HttpLimits(reserved_descriptors=_OWN_DESCRIPTORS + 2 * settings.plusofon.max_connections),
            cert_file=settings.tls.cert_file,
            key_file=settings.tls.key_file,
        ),
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,  # the service writes a line of its own for each request
        "server_header": False,
        "proxy_headers": bool(proxies),
        "forwarded_allow_ips": proxies,
        "timeout_keep_alive": settings.keep_alive_seconds,
        # A worker is silent until it has imported everything: seconds on a busy machine. Uvicorn ends it after five.
        "timeout_worker_healthcheck": 30,
        "timeout_graceful_shutdown": ceil(settings.longest_request.total_seconds()),
    }


def _banner(settings: Settings, looser: Mapping[str, str]) -> str:
    who = "those with a key of API_KEYS" if settings.api.keys else "everybody"
    where = "the Redis of REDIS_URL" if settings.redis.url else "an embedded Redis"
    address = settings.reachable_url
    limits = ""
    if looser:
        values = " ".join(f"{name}={value}" for name, value in looser.items())
        limits = textwrap.indent(textwrap.fill(f"limits are looser than in production: {values}", 78), "  ") + "\n"
    return f"""
  Plusofon Verify · SANDBOX: no real call is placed, codes can be read back,
  {who} may call the API, verifications are kept in {where}
{limits}
    demo page    {address}/demo
    API docs     {address}/docs
    all calls    {address}/sandbox/calls
    dial         POST {address}/sandbox/phones/+79001234567/dial
    numbers      {address}/sandbox/magic-numbers   +79000000001 is busy, +79000000002 never answers, …

    curl -s {address}/verify/start -H 'Content-Type: application/json' -d '{{"phone": "+79001234567"}}'

    in another shell: plusofon-verify events tail, events trigger, attempts, stats, verifications, guard, forget
"""
