"""The map of docs/architecture.md names what is there, and every room."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(app/[\w./]+)`", MAP))


def test_every_file_and_folder_on_the_map_exists() -> None:
    assert len(NAMED) > 40
    assert not [name for name in NAMED if not (ROOT / name).exists()]


def test_every_room_and_every_folder_of_scripts_is_on_the_map() -> None:
    rooms = {f"app/{path.parent.name}/" for path in (ROOT / "app").glob("*/__init__.py")}
    scripts = {f"app/store/lua/{path.parent.name}/" for path in (ROOT / "app/store/lua").glob("*/*.lua")}

    assert rooms <= NAMED
    assert scripts - {"app/store/lua/probe/"} <= NAMED
