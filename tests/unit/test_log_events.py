"""docs/monitoring.md lists every event that the code logs, with its fields, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.log_events import COMMON_FIELDS, documented

APP = Path(__file__).parents[2] / "app"
EVENT = re.compile(r"[a-z_]+\.[a-z_]+")
LOGGING = {"debug", "info", "warning", "error", "exception", "log", "_log", "_log_verdict", "report", "run"}
NAMED = {"not_reached", "unexpected_error"}  # parameters that take the name of an event
TABLES = {"_EVENTS", "_REJECTED", "_REFUSED"}  # of names of events
OWN_PARAMETERS = {"extra", "logger"}


def logged() -> Iterator[tuple[str, set[str]]]:
    """Yield the events that are named in the source, and the fields that stand beside the name."""
    for file in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in LOGGING:
                    for event in map(_event, node.args):
                        if event:
                            yield event, set(_fields(node))
                case ast.keyword(arg=name, value=value) if name in NAMED and (event := _event(value)):
                    yield event, set()
                case (
                    ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict(values=values))
                    | ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(values=values))
                ) if name in TABLES:
                    for event in map(_event, values):
                        if event:
                            yield event, set()


def _event(node: ast.AST) -> str | None:
    is_event = isinstance(node, ast.Constant) and isinstance(node.value, str) and EVENT.fullmatch(node.value)
    return node.value if is_event else None  # type: ignore[attr-defined] # it is a text


def _fields(call: ast.Call) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg == "extra":
            for node in ast.walk(keyword.value):
                if isinstance(node, ast.Dict):
                    yield from (str(key.value) for key in node.keys if isinstance(key, ast.Constant))
        elif keyword.arg and keyword.arg not in OWN_PARAMETERS:
            yield keyword.arg


def test_every_event_of_the_code_is_documented_and_no_other() -> None:
    events = {event for event, _ in logged()}

    assert {"request.handled", "call.placed", "guard.blocked", "balance.low", "http.request_rejected"} <= events
    assert events == documented().keys()


def test_every_field_that_an_event_is_given_is_documented() -> None:
    undocumented = {
        (event, field) for event, fields in logged() for field in fields - documented()[event] - COMMON_FIELDS
    }

    assert undocumented == set()


def test_the_fields_of_every_event_are_those_of_the_log_context() -> None:
    assert {"request_id", "client", "verification_id", "call_number", "channel", "phone"} < COMMON_FIELDS
