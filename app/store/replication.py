"""Waits until replicas have what commands wrote, before their callers get the replies."""

from collections.abc import Callable, Sequence

from redis.asyncio.connection import AbstractConnection

from app.store.connection import Command, Connection, Errors, pack
from app.store.failures import NotReplicated, code_if_not_run


class ReplicatedConnection(Connection):
    """A connection on which each write ends with one ``WAIT``, for ``timeout`` seconds at most.

    It holds up whatever stands behind it, so it has its own connection. Commands that ran get the error NotReplicated
    if fewer than ``replicas`` confirm them in time; as they did run, they are never sent again.
    """

    def __init__(self, library: AbstractConnection, *, replicas: int, timeout: float) -> None:
        super().__init__(library)
        self._replicas = replicas
        self._wait = pack("WAIT", replicas, int(timeout * 1000))

    def send(self, commands: Sequence[Command], end: Callable[[Errors], None]) -> None:
        """Write commands, and set their replies once replicas have them; then call ``end`` as usual."""
        held = {Command(command.data): command for command in commands}
        wait = Command(self._wait)

        def finish(errors: Errors) -> None:
            failures = dict(errors)
            lost = failures.pop(wait, None)
            # That WAIT was not run does not mean that the commands before it were not.
            error = NotReplicated() if lost is None or code_if_not_run(lost) else lost
            is_replicated = lost is None and wait.reply.result() >= self._replicas
            for inner, command in held.items():
                if inner in failures:
                    continue
                if is_replicated:
                    command.answer(inner.reply.result())
                else:
                    failures[inner] = error
            end([(held[inner], failure) for inner, failure in failures.items()])

        super().send([*held, wait], finish)
