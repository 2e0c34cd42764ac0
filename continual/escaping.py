"""Names and messages of others as they may be shown: what they say, and nothing that they would have a reader do."""

import unicodedata

ESCAPED_CATEGORIES = (
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
)  # control, direction and other formats, half surrogate pairs, new lines
ALLOWED_CHARACTERS = "\n\t\u200d"  # lines, columns, and what joins an emoji of several


def escape_control_characters(text: str) -> str:
    """`text` with every sign that a terminal or a browser would obey written as its escape.

    >>> visible("mood\\x1b[2J")
    'mood\\\\x1b[2J'
    """
    return "".join(
        sign if sign in ALLOWED_CHARACTERS or _shows(sign) else sign.encode("unicode_escape").decode() for sign in text
    )


def _shows(sign: str) -> bool:
    return unicodedata.category(sign) not in ESCAPED_CATEGORIES
