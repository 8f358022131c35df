"""What an error of Redis means: why a command failed, and whether it may have run."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import Context

from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.verification.errors import StoreFailure

log = logging.getLogger(__name__)

_LOGGED_EVERY = 0.2  # seconds

_REASONS: Mapping[str, StoreFailure] = {
    **dict.fromkeys(["READONLY", "MASTERDOWN"], StoreFailure.REPLICA),
    "LOADING": StoreFailure.LOADING,
    "NOREPLICAS": StoreFailure.TOO_FEW_REPLICAS,
    **dict.fromkeys(["CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN", "CROSSSLOT"], StoreFailure.CLUSTER),
    "OOM": StoreFailure.OUT_OF_MEMORY,
    "MISCONF": StoreFailure.CANNOT_SAVE,
    "BUSY": StoreFailure.BUSY,
    **dict.fromkeys(["NOPERM", "NOAUTH", "WRONGPASS"], StoreFailure.ACCESS_DENIED),
}
_NOT_RUN = frozenset(
    {"READONLY", "MASTERDOWN", "LOADING", "NOREPLICAS", "NOSCRIPT", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN"}
)
"""Errors of a server that did not run the command; a new connection may reach one that does (ADR 12)."""

# A script has touched a key that it does not declare, and whose slot moves. It has written nothing before: tests prove
# that of every script.
_NOT_LOCAL = "Script attempted to access a non local key"

# Inside a script Valkey and Redis have no code for NOPERM.
_DENIED_INSIDE_SCRIPT = ("ACL failure in script", "The user executing the script can't")


class NotReplicated(RedisError):
    """Too few replicas have confirmed in time what a command wrote: it did run, and no reply says that it did not."""

    def __init__(self) -> None:
        super().__init__("NOREPLICAS in time")


class ConnectionLost(RedisConnectionError):
    """The connection was lost after a command was sent: it may have run."""


def code_if_not_run(error: Exception) -> str:
    """Return the code of a reply that says that the command was not run: another connection may run it. Else ''."""
    code = code_of(error) if isinstance(error, ResponseError) else ""
    return code if code in _NOT_RUN else ""


def reason_of(error: Exception) -> StoreFailure:
    """Return why a command failed."""
    match error:
        case TimeoutError() | RedisTimeoutError():
            return StoreFailure.TIMEOUT
        case AuthenticationError():
            return StoreFailure.ACCESS_DENIED
        case ConnectionLost():
            return StoreFailure.CONNECTION_LOST
        case RedisError() if reason := _REASONS.get(code_of(error)):
            return reason
        case RedisConnectionError() | OSError():
            return StoreFailure.UNREACHABLE
    is_denied = str(error).removeprefix("ERR ").startswith(_DENIED_INSIDE_SCRIPT)
    return StoreFailure.ACCESS_DENIED if is_denied else StoreFailure.OTHER


class FailureLog:
    """Logs why commands fail: at once, then for each reason at most five times a second, with the number of errors."""

    def __init__(self) -> None:
        self._unlogged: Counter[StoreFailure] = Counter()
        self._again_at: dict[StoreFailure, float] = {}

    def __call__(self, errors: Sequence[Exception]) -> None:
        """Count the errors, and log those that are due."""
        last = {reason_of(error): error for error in errors}
        self._unlogged.update(map(reason_of, errors))
        now = time.monotonic()
        for reason, error in last.items():
            if now >= self._again_at.get(reason, now):
                self._again_at[reason] = now + _LOGGED_EVERY
                facts = {"reason": reason, "error": name_of(error), "commands": self._unlogged.pop(reason)}
                Context().run(log.error, "store.unavailable", extra=facts)  # of all that wait, not of one request


def name_of(error: Exception) -> str:
    """Return the code of an error, or else its class. Its message may contain an address, a key or an argument."""
    code = code_of(error) if isinstance(error, RedisError) else ""
    return code if code.isupper() else type(error).__name__


def code_of(error: RedisError) -> str:
    """Return the first word of an error reply; the library removes it from the message if it knows it.

    A script that met a moving slot has the code of a command that does.
    """
    cause = error.__cause__  # while it connects to a unix socket, the library wraps a refusal
    reply = cause if isinstance(cause, RedisError) else error
    if _NOT_LOCAL in str(reply):
        return "TRYAGAIN"
    return reply.status_code or str(reply).partition(" ")[0]
