"""Log lines that are written together."""

import asyncio
import io

from app.telemetry.logging import LineBuffer


class CountingStream(io.StringIO):
    """Counts the writes."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


async def test_lines_of_a_moment_are_written_in_one_write_and_in_order() -> None:
    stream = CountingStream()
    buffer = LineBuffer(stream)

    for number in range(100):
        buffer.write_later(str(number))
    assert stream.getvalue() == ""
    await asyncio.sleep(0.05)

    assert stream.getvalue().split() == [str(number) for number in range(100)]
    assert stream.writes == 1


async def test_a_flush_writes_what_is_held_before_it() -> None:
    stream = CountingStream()
    buffer = LineBuffer(stream)
    buffer.write_later("request")
    buffer.write("error\n")

    buffer.flush()

    assert stream.getvalue() == "request\nerror\n"


async def test_no_more_than_a_thousand_lines_are_held() -> None:
    stream = CountingStream()
    buffer = LineBuffer(stream)
    for _ in range(1500):
        buffer.write_later("line")

    assert stream.getvalue().count("\n") == 1000


def test_without_an_event_loop_a_line_is_written_at_once() -> None:
    stream = CountingStream()
    LineBuffer(stream).write_later("line")

    assert stream.getvalue() == "line\n"
