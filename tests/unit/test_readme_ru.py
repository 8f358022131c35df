"""README.ru.md says what README.md says: the same headings, commands, settings and links, in the same places."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, RUSSIAN = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ru.md"))
LANGUAGES = {"README.md", "README.ru.md"}  # each names the other


def sections(text: str) -> list[str]:
    """Split at headings, none of which is in a block of code."""
    return re.split(r"^(?=#+ )", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)


def levels(text: str) -> list[str]:
    return [section.partition(" ")[0] for section in sections(text)[1:]]


def blocks(text: str) -> list[tuple[str, str]]:
    """The blocks of code by their language, without what is said to people in them."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(language, _commands(code) if language else _names(code)) for language, code in found]


def _commands(code: str) -> str:
    return re.sub(r"(^| +)# .*", "", code, flags=re.MULTILINE)


def _names(drawing: str) -> str:
    """What is not translated of a drawing: paths and the words of the domain."""
    return " ".join(re.findall(r"(?:\w+)?/\w+(?:/\w+)?|Placed|Refused|Unknown|Redis|Plusofon|HTTP|JSON|Lua", drawing))


def code(section: str) -> Counter[str]:
    """What stands between backticks. A sentence may have another order in another language."""
    return Counter(re.findall(r"`([^`\n]+)`", section))


def links(section: str) -> Counter[str]:
    return Counter(re.findall(r"\]\(([^)]+)\)", section) + re.findall(r"<(http[^>]+)>", section))


def rows(section: str) -> list[list[str]]:
    """What stands between backticks in the first cell of each row of a table."""
    return [re.findall(r"`[^`]+`", row.split(" | ")[0]) for row in re.findall(r"^\|.*", section, re.MULTILINE)]


def points(section: str) -> list[str]:
    return re.findall(r"^(?:- |\d+\. )", section, re.MULTILINE)


def test_the_headings_are_the_same() -> None:
    assert levels(RUSSIAN) == levels(ENGLISH)
    assert len(levels(ENGLISH)) > 3


def test_the_blocks_of_code_are_the_same() -> None:
    assert blocks(RUSSIAN) == blocks(ENGLISH)
    assert blocks(ENGLISH)


@pytest.mark.parametrize("part", [code, links, rows, points], ids=lambda part: part.__name__)
def test_each_section_has_the_same(part: Callable[[str], object]) -> None:
    for english, russian in zip(sections(ENGLISH), sections(RUSSIAN), strict=True):
        assert part(without_languages(russian)) == part(without_languages(english)), russian.partition("\n")[0]


def test_the_settings_are_the_same_in_the_same_order() -> None:
    setting = r"`([A-Z]+(?:_[A-Z]+)*(?:_…)?)`"

    assert re.findall(setting, RUSSIAN) == re.findall(setting, ENGLISH)


def test_each_links_to_the_other() -> None:
    assert "(README.ru.md)" in ENGLISH.split("##")[0]
    assert "(README.md)" in RUSSIAN.split("##")[0]


@pytest.mark.parametrize("text", [ENGLISH, RUSSIAN], ids=["en", "ru"])
def test_what_is_linked_exists(text: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_it_is_written_in_russian() -> None:
    """A paragraph that was added in English and only copied is noticed."""
    plain = re.sub(r"^```.*?^```$|`[^`]*`|\([^)]*\)|<[^>]*>", "", RUSSIAN, flags=re.DOTALL | re.MULTILINE)
    for paragraph in plain.split("\n\n"):
        words = re.findall(r"[^\W\d_]{3,}", paragraph)
        russian = [word for word in words if re.search(r"[\u0400-\u04ff]", word)]
        assert len(words) < 8 or len(russian) > len(words) / 2, paragraph


def without_languages(section: str) -> str:
    return "\n".join(line for line in section.splitlines() if not any(f"({name})" in line for name in LANGUAGES))
