"""Fuzz the parsers of phone numbers and codes: no other text may be read as a number, and no number as another one.

Run ``python benchmarks/fuzz_text.py --rounds 200000``; the exit code is 1 if a rule was broken.
"""

import argparse
import random
import sys
import unicodedata
from collections import Counter

from app.verification.code import normalize_code
from app.verification.errors import PhoneNotCallable
from app.verification.phone import parse_phone
from app.verification.typed_text import read_digits

_EVERY_CHARACTER = [chr(point) for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point)) != "Cs"]
_VALUE = {char: str(value) for char in _EVERY_CHARACTER if (value := unicodedata.decimal(char, None)) is not None}
_DROPPED = [
    char
    for char in _EVERY_CHARACTER
    if unicodedata.category(char) in {"Cf", "Pd", "Zs", "Zl", "Zp"} or char in ".()[]/~·\t\n\ufe0f\u20e3"
]
_OTHERS = [char for char in _EVERY_CHARACTER if char.isprintable() and char not in _VALUE and char not in _DROPPED]
_ALIKE = {digit: [char for char, value in _VALUE.items() if value == digit] for digit in "0123456789"} | {
    "+": ["+", "+"]
}


def _disguise(draw: random.Random, number: str) -> str:
    """Return a number with digits of random scripts, with ignored characters between them."""

    def noise() -> str:
        return "".join(draw.choices(_DROPPED, k=draw.randrange(3)))

    return "".join(noise() + draw.choice(_ALIKE[char]) for char in number) + noise()


def _digits(text: str) -> str:
    """Return the decimal digits of a text by Unicode's own table, without all other characters."""
    return "".join(_VALUE.get(char, "") for char in text)


def _read(text: str) -> tuple[str | None, str | None, str | None]:
    """Return the digits, the phone and the code of a text; None for each that is refused."""
    results: list[str | None] = []
    for read in (read_digits, lambda text: parse_phone(text).e164, normalize_code):
        try:
            results.append(read(text))
        except (ValueError, PhoneNotCallable):
            results.append(None)
    return results[0], results[1], results[2]


def _national(phone: str) -> str:
    return phone.removeprefix("+7")


def _play(draw: random.Random, rounds: int) -> Counter[str]:
    """Count how texts were read; names of broken rules begin with ``WRONG``."""
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        plain = draw.choice(["+79", "89", "79", "9", "+", "+8", ""])
        plain += "".join(draw.choices("0123456789", k=draw.choice([3, 4, 5, 6, 7, 9, 9, 9, 10, 11])))
        text = _disguise(draw, plain)
        digits, phone, code = _read(text)
        counts["disguised numbers read as themselves"] += digits == plain
        counts["WRONG: a disguised number read as another, or refused"] += digits != plain
        counts["WRONG: a disguise changes the phone or the code"] += (phone, code) != _read(plain)[1:]
        if phone:
            counts["disguised numbers that are phones"] += 1
            counts["WRONG: a phone ends in other digits than its text"] += not plain.endswith(_national(phone))
            counts["WRONG: a number of another country became a Russian one"] += plain.startswith(
                "+"
            ) and not plain.startswith(("+7", "+89"))
        if code:
            counts["disguised numbers that are codes"] += 1
            counts["WRONG: a code has other digits than its text"] += not plain.endswith(code)

        spoilt = list(text)
        spoilt.insert(draw.randrange(len(spoilt) + 1), draw.choice(_OTHERS))
        digits, phone, code = _read("".join(spoilt))
        counts["numbers with one foreign character, refused"] += digits is None
        # An accepted text contains punctuation missing in the list above; no digit may be added or lost.
        counts["WRONG: a foreign character became a digit"] += digits is not None and digits.strip("+") != plain.strip(
            "+"
        )
        counts["WRONG: a foreign letter was dropped"] += (
            digits is not None
            and any(
                unicodedata.category(char)[0] == "L" and unicodedata.normalize("NFKC", char).isalpha()
                for char in spoilt
            )
            and not set(spoilt) & set("\u115f\u1160\u3164\uffa0\u30fc\uff70")
        )

        noise = "".join(draw.choices(_EVERY_CHARACTER, k=draw.randrange(24)))
        digits, phone, code = _read(noise)
        counts["random texts, refused"] += digits is None
        counts["WRONG: a random text was read as digits that it does not have"] += (
            digits is not None and digits.removeprefix("+") != _digits(noise)
        )
    return counts


def main() -> int:
    """Run, print the counts, and return the exit code."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    counts = _play(random.Random(chosen.seed), chosen.rounds)  # noqa: S311 - no secret is drawn
    for name, count in sorted(counts.items()):
        print(f"{count:>9,}  {name}")
    return int(any(count for name, count in counts.items() if name.startswith("WRONG")))


if __name__ == "__main__":
    sys.exit(main())
