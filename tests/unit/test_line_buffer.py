"""Log lines that are written together."""

import io
import json

from app.telemetry.logging import LineBuffer
from tests.waiting import until


class CountingStream(io.StringIO):
    """Counts the writes."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


async def test_lines_of_a_moment_are_written_in_one_write_and_in_order() -> None:
    stream = CountingStream()
    buffer = LineBuffer(stream, json.dumps)

    for number in range(100):
        buffer.write_later({"line": number})
    assert stream.getvalue() == ""
    await until(stream.getvalue)

    assert stream.getvalue().splitlines() == [f'{{"line": {number}}}' for number in range(100)]
    assert stream.writes == 1


async def test_a_flush_writes_what_is_held_before_it() -> None:
    stream = CountingStream()
    buffer = LineBuffer(stream, json.dumps)
    buffer.write_later({"line": "request"})
    buffer.write("error\n")

    buffer.flush()

    assert stream.getvalue() == '{"line": "request"}\nerror\n'


async def test_no_more_than_a_thousand_lines_are_held() -> None:
    stream = CountingStream()
    buffer = LineBuffer(stream, json.dumps)
    for _ in range(1500):
        buffer.write_later({"line": 1})

    assert stream.getvalue().count("\n") == 1000


def test_without_an_event_loop_a_line_is_written_at_once() -> None:
    stream = CountingStream()
    LineBuffer(stream, json.dumps).write_later({"line": 1})

    assert stream.getvalue() == '{"line": 1}\n'
