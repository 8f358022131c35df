"""README.ru.md matches README.md: the same headings, commands, settings and links, in the same places."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, RUSSIAN = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ru.md"))
LANGUAGES = {"README.md", "README.ru.md"}  # each links to the other


def sections(text: str) -> list[str]:
    """Split at headings, none of which is in a block of code."""
    return re.split(r"^(?=#+ )", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)


def levels(text: str) -> list[str]:
    return [section.partition(" ")[0] for section in sections(text)[1:]]


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the code blocks with their language, without comments and translated text."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(language, _commands(code) if language else _names(code)) for language, code in found]


def _commands(code: str) -> str:
    return re.sub(r"(^| +)# .*", "", code, flags=re.MULTILINE)


def _names(drawing: str) -> str:
    """Return the words of a drawing that are not translated: paths and domain terms."""
    return " ".join(re.findall(r"(?:\w+)?/\w+(?:/\w+)?|Placed|Refused|Unknown|Redis|Plusofon|HTTP|JSON|Lua", drawing))


def code(section: str) -> Counter[str]:
    """Count the spans between backticks; their order may differ between languages."""
    return Counter(re.findall(r"`([^`\n]+)`", section))


def links(section: str) -> Counter[str]:
    return Counter(re.findall(r"\]\(([^)]+)\)", section) + re.findall(r"<(http[^>]+)>", section))


def rows(section: str) -> list[list[str]]:
    """Return the spans between backticks in the first cell of each table row."""
    return [re.findall(r"`[^`]+`", row.split(" | ")[0]) for row in re.findall(r"^\|.*", section, re.MULTILINE)]


def points(section: str) -> list[str]:
    return re.findall(r"^(?:- |\d+\. )", section, re.MULTILINE)


def test_headings_have_the_same_levels() -> None:
    assert levels(RUSSIAN) == levels(ENGLISH)
    assert len(levels(ENGLISH)) > 3


def test_code_blocks_are_the_same() -> None:
    assert blocks(RUSSIAN) == blocks(ENGLISH)
    assert blocks(ENGLISH)


@pytest.mark.parametrize("part", [code, links, rows, points], ids=lambda part: part.__name__)
def test_each_section_has_the_same_code_links_table_rows_and_list_items(part: Callable[[str], object]) -> None:
    for english, russian in zip(sections(ENGLISH), sections(RUSSIAN), strict=True):
        assert part(without_languages(russian)) == part(without_languages(english)), russian.partition("\n")[0]


def test_settings_are_the_same_in_the_same_order() -> None:
    setting = r"`([A-Z]+(?:_[A-Z]+)*(?:_…)?)`"

    assert re.findall(setting, RUSSIAN) == re.findall(setting, ENGLISH)


def test_each_readme_links_to_the_other() -> None:
    assert "(README.ru.md)" in ENGLISH.split("##")[0]
    assert "(README.md)" in RUSSIAN.split("##")[0]


@pytest.mark.parametrize("text", [ENGLISH, RUSSIAN], ids=["en", "ru"])
def test_every_linked_file_exists(text: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_russian_readme_is_written_in_russian() -> None:
    """Detect a paragraph that was copied from the English README and not translated."""
    plain = re.sub(r"^```.*?^```$|`[^`]*`|\([^)]*\)|<[^>]*>", "", RUSSIAN, flags=re.DOTALL | re.MULTILINE)
    for paragraph in plain.split("\n\n"):
        words = re.findall(r"[^\W\d_]{3,}", paragraph)
        russian = [word for word in words if re.search(r"[\u0400-\u04ff]", word)]
        assert len(words) < 8 or len(russian) > len(words) / 2, paragraph


def without_languages(section: str) -> str:
    return "\n".join(line for line in section.splitlines() if not any(f"({name})" in line for name in LANGUAGES))
