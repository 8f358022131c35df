"""The table and the configuration for ``attempt.finished`` in docs/monitoring.md fit the event."""

import re
from dataclasses import fields

import yaml  # type: ignore[import-untyped] # its stubs would be one more dependency

from app.verification.attempts import Attempt, Ending, Outcome, Result
from app.verification.model import CallStatus
from tests.log_events import DOCS, documented

SECTION = DOCS.read_text(encoding="utf-8").partition("\n### Attempts in a database\n")[2].partition("\n## ")[0]
(CONFIGURATION,) = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
TABLE, QUERY = re.findall(r"```sql\n(.*?)```", SECTION, re.DOTALL)
FIELDS = {field.name for field in fields(Attempt)}


def test_the_event_has_every_field_of_an_attempt() -> None:
    context = {"client", "verification_id", "call_number", "channel", "phone"}

    assert documented()["attempt.finished"] | context == FIELDS


def test_the_table_has_a_column_for_each_field_and_the_time_of_the_line() -> None:
    columns = dict(re.findall(r"^    (\w+) +(\S.*?),?$", TABLE, re.MULTILINE))

    assert columns.keys() == FIELDS | {"timestamp"}
    for field in fields(Attempt):
        assert ("Nullable" in columns[field.name]) is ("None" in str(field.type)), field.name
    assert set(re.findall(r"\w+", TABLE.partition("ORDER BY (")[2].partition(")")[0])) <= columns.keys()
    assert set(re.findall(r"\w+_\w+", QUERY)) <= columns.keys()


def test_the_configuration_leads_from_the_log_to_the_table() -> None:
    configuration = yaml.safe_load(CONFIGURATION)
    (source,), (transform,), (sink,) = (configuration[part].items() for part in ("sources", "transforms", "sinks"))

    assert transform[1]["inputs"] == [source[0]]
    assert sink[1]["inputs"] == [transform[0]]
    assert f"{sink[1]['database']}.{sink[1]['table']}" in TABLE
    program = transform[1]["source"]
    assert 'if .event != "attempt.finished"' in program
    dropped = set(re.findall(r"del\(\.(\w+)\)", program))
    assert not dropped & FIELDS
    assert program.count("(") == program.count(")")


def test_the_words_by_which_attempts_are_found_are_those_that_they_have() -> None:
    final = {status for status in CallStatus if status.is_final}

    assert {str(word) for word in Result} == {str(word) for word in (*Outcome, *final, *Ending)}
