"""docs/architecture.md names every package of app/ and only files that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(app/[\w./]+)`", MAP))


def test_every_file_and_folder_named_in_architecture_md_exists() -> None:
    assert len(NAMED) > 40
    assert not [name for name in NAMED if not (ROOT / name).exists()]


def test_every_package_and_every_folder_of_lua_scripts_is_named_in_architecture_md() -> None:
    rooms = {f"app/{path.parent.name}/" for path in (ROOT / "app").glob("*/__init__.py")}
    scripts = {f"app/store/lua/{path.parent.name}/" for path in (ROOT / "app/store/lua").glob("*/*.lua")}

    assert rooms <= NAMED
    assert scripts - {"app/store/lua/probe/"} <= NAMED
