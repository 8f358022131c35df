"""Log lines that are written together: a write to the system costs more than all else that is done for a line."""

import asyncio
import atexit
from typing import TextIO

_WRITTEN_AFTER = 0.02  # seconds
_MOST_LINES = 1000  # at once


class LineBuffer:
    """A stream that holds lines for 20 ms, or until somebody flushes it. Made for one thread, that of the event loop.

    Lines that are held are lost if the process is killed in these 20 ms; they are written when it exits.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        atexit.register(self.flush)

    def write_later(self, line: str) -> None:
        """Hold a line; without a running event loop, write it at once."""
        self._lines.append(line + "\n")
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(_WRITTEN_AFTER, self.flush)
            except RuntimeError:
                self.flush()
        elif len(self._lines) >= _MOST_LINES:
            self.flush()

    def write(self, text: str) -> None:
        """Write text after all that is held, at the next flush."""
        self._lines.append(text)

    def flush(self) -> None:
        """Write what is held."""
        lines, self._lines = self._lines, []
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if lines:
            self._stream.write("".join(lines))
            self._stream.flush()
