"""docs/architecture.md names every package of app/, and it and CONTRIBUTING.md name only files that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(app/[\w./]+)`", MAP))
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_file_and_folder_named_in_architecture_md_exists() -> None:
    assert len(NAMED) > 40
    assert not [name for name in NAMED if not (ROOT / name).exists()]


def test_every_package_and_every_folder_of_lua_scripts_is_named_in_architecture_md() -> None:
    rooms = {f"app/{path.parent.name}/" for path in (ROOT / "app").glob("*/__init__.py")}
    scripts = {f"app/store/lua/{path.parent.name}/" for path in (ROOT / "app/store/lua").glob("*/*.lua")}

    assert rooms <= NAMED
    assert scripts - {"app/store/lua/probe/"} <= NAMED


def test_every_file_and_folder_named_in_contributing_md_exists() -> None:
    named = set(re.findall(r"`((?:app|deploy|docs|tests)/[\w./-]+)`", GUIDE))

    assert len(named) > 40
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_twelve_changes_of_contributing_md_name_what_their_files_have() -> None:
    table = GUIDE.partition("### Twelve changes")[2].partition("## Rules")[0]
    places = re.findall(r"`(app/[\w./]+)` → (`\w+`(?:, `\w+`)*)", table)

    assert len([line for line in table.splitlines() if line.startswith("| ")]) == 1 + 12
    assert len(places) >= 12
    for path, names in places:
        files = [file for file in [ROOT / path, *(ROOT / path).rglob("*.py")] if file.is_file()]
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        assert not [name for name in re.findall(r"\w+", names) if not re.search(rf"\b{name}\b", text)], path
