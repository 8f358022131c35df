"""How Lua scripts are written: arguments and fields have names."""

import re
from pathlib import Path

import pytest

from app.store.layout import CallField, PhoneField, RecordField
from app.store.scripts import Script

LUA = Path(__file__).parents[2] / "app" / "store" / "lua"
FILES = sorted(LUA.rglob("*.lua"))
SHARED = {
    *("common.lua", "journal.lua", "log.lua", "record.lua", "outbox.lua", "start_rules.lua"),
    *("window.lua", "conversions.lua", "decision.lua"),
}
SCRIPTS = [file for file in FILES if file.name not in SHARED or file.parent.name == "erasure"]
NAMES = [name for kind in (RecordField, CallField, PhoneField) for name in vars(kind) if name.isupper()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LUA)))
def test_arguments_have_names_below_the_first_lines(file: Path) -> None:
    _, _, body = file.read_text().partition("\n\n")

    assert not re.search(r"\b(KEYS|ARGV)\[", body)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: str(file.relative_to(LUA)))
def test_a_script_opens_with_its_keys(file: Path) -> None:
    head, _, _ = file.read_text().partition("\n\n")

    assert "\n-- KEYS    " in head or "start_rules.lua" in head


def test_no_two_fields_of_a_hash_have_the_same_letter() -> None:
    for kind in (RecordField, CallField, PhoneField):
        letters = [letter for name, letter in vars(kind).items() if name.isupper()]
        assert len(set(letters)) == len(letters) > 0
    assert len(set(NAMES)) == len(NAMES)


def test_no_two_shared_definitions_have_the_same_name() -> None:
    """A script that uses one of them would get both, and all that the other one uses."""
    shared = [file for file in FILES if file not in SCRIPTS and file.name != "start_rules.lua"]  # which is taken whole
    source = "".join(file.read_text() for file in shared)
    names = re.findall(r"^local (?:function )?(\w+)", source, re.MULTILINE)

    assert sorted(set(names)) == sorted(names)


def test_a_script_has_the_letters_of_fields_and_no_names() -> None:
    source = Script("verification", "read").source

    assert "if not record['c'] or" in source
    assert not re.search(rf"\b({'|'.join(set(NAMES) - {'CALL_STATUS'})})\b", source)


def test_every_field_is_used_by_a_script() -> None:
    sources = "\n".join(file.read_text() for file in FILES)

    assert [name for name in NAMES if not re.search(rf"\b{name}\b", sources)] == []


def test_a_script_has_the_shared_definitions_that_it_uses_and_no_others() -> None:
    source = Script("verification", "read").source

    assert set(re.findall(r"^local function (\w+)", source, re.MULTILINE)) == {"now_ms", "load_record", "save_record"}
