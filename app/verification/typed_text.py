"""What characters of a text count: the digits of a phone number or a code that a person typed, and visible ones."""

import re
import unicodedata

# Punctuation between digits, after NFKC normalization: that of libphonenumber (PhoneNumberUtil, VALID_PUNCTUATION)
# without its "x", and the dots and bullets of other keyboards. The dashes are a Unicode category of their own. A comma
# or a semicolon is left out: it begins an extension.
_PUNCTUATION = frozenset(".()[]/~\u2053\u223c\u2212\u30fc\u00b7\u2022\u2027\u2043\u2219\u22c5\u30fb")

# Invisible characters that are neither format characters (Cf) nor white space: the combining grapheme joiner, fillers,
# variation selectors, the braille blank, and the frame of a keycap emoji.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u20e3\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_NUMBER = re.compile(r"(\+?)\+*([0-9]+)")


def drop_invisible(text: str) -> str:
    """Return ``text`` without format characters (Cf), variation selectors and other invisible characters."""
    if text.isascii():
        return text
    return "".join(char for char in _INVISIBLE.sub("", text) if unicodedata.category(char) != "Cf")


def require_visible(text: str) -> str:
    """Return ``text`` if all its characters can be seen; a space (U+0020) may stand between them. Raise ValueError.

    Refused are control, format (with it the bidirectional marks), private and unassigned characters, other spaces and
    line ends, and what else is invisible: two texts that look alike are the same, and none changes a line of a log or
    of a terminal. As for a combining mark, it can be seen.
    """
    if not text.isprintable() or _INVISIBLE.search(text) or text != text.strip(" "):
        raise ValueError("must be visible characters, with nothing but spaces (U+0020) between them")
    return text


def read_digits(text: str) -> str:
    """Return the digits of ``text`` in ASCII, with ``+`` before them if the text begins with one.

    Decimal digits of any script (Unicode category Nd) count. White space, punctuation and invisible characters are
    dropped, so a number copied from a contact list or typed on another keyboard reads as the same number, and two
    numbers with different digits never read as one.

    Raise ValueError if there is no digit, or anything else: a letter, a fraction, a superscript, a plus between digits.
    """
    if text.isascii() and text.isdigit():  # as most are
        return text
    match = _NUMBER.fullmatch("".join(map(_read_character, drop_invisible(text))))
    if not match:
        raise ValueError("must be digits, with nothing but spaces and punctuation between them")
    return match[1] + match[2]


def _read_character(char: str) -> str:
    """Return the ASCII digit or plus that a character stands for, "" if it is dropped, else the character."""
    if "0" <= char <= "9":
        return char
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category == "Pd" or char.isspace():
        return ""
    plain = unicodedata.normalize("NFKC", char)
    return "" if plain in _PUNCTUATION else "+" if plain == "+" else char
