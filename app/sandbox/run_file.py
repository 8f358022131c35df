"""Run files: each running sandbox has one, by which commands in other shells of the same user find it."""

import fcntl
import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningSandbox:
    """How a running sandbox is reached, and the keys of what is in its Redis. Its repr omits the keys."""

    url: str
    port: int
    redis_url: str
    secret_key: str = field(repr=False)
    names_key: str = field(repr=False)


@contextmanager
def run_file(sandbox: RunningSandbox) -> Iterator[None]:
    """Keep the run file of a sandbox while the context is open. A folder that cannot be used is logged.

    The file is locked by its process: one that was left behind by a kill is known by its missing lock.
    """
    with ExitStack() as stack:
        try:
            folder = _folder()
            folder.mkdir(mode=0o700, exist_ok=True)
            _require_own(folder)
            descriptor, name = tempfile.mkstemp(dir=folder)  # its mode is 0600
            file = stack.enter_context(open(descriptor, "w", encoding="utf-8"))  # noqa: PTH123 - of a descriptor
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(asdict(sandbox), file)
            file.flush()
            # Whole and locked before it has the name that readers look for.
            path = Path(name).rename(f"{name}.json")
            stack.callback(path.unlink, missing_ok=True)
        except OSError as error:
            log.warning("sandbox.run_file_failed", extra={"error": error.strerror or str(error)})
        yield


def running_sandboxes() -> list[RunningSandbox]:
    """Return the sandboxes of this user that run on this machine, by port; remove the files of those that do not."""
    folder = _folder()
    try:
        _require_own(folder)
    except OSError:
        return []
    found = (_read(path) for path in folder.glob("*.json"))
    return sorted((sandbox for sandbox in found if sandbox), key=lambda sandbox: sandbox.port)


def _folder() -> Path:
    """Return the folder of run files, in the user's runtime directory (XDG Base Directory Specification) if any."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "plusofon-verify"
    return Path(tempfile.gettempdir()) / f"plusofon-verify-{os.getuid()}"


def _require_own(folder: Path) -> None:
    """Raise OSError unless a folder belongs to this user alone: another could put a Redis of his into a run file."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")


def _read(path: Path) -> RunningSandbox | None:
    try:
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return RunningSandbox(**json.load(file))
            path.unlink(missing_ok=True)
    except (OSError, ValueError, TypeError):  # removed meanwhile, or of another version
        pass
    return None
