"""Escape control and direction characters in untrusted text before it reaches a terminal or a page."""

import unicodedata

# Unicode categories: control, format (such as text direction), surrogate, line and paragraph separator.
ESCAPED_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
ALLOWED_CHARACTERS = "\n\t\u200d"  # line break, tab, and the joiner of composed emoji


def escape_control_characters(text: str) -> str:
    r"""Replace each character that a terminal or a browser would act on by its escape.

    >>> escape_control_characters("mood\x1b[2J")
    'mood\\x1b[2J'
    """
    return "".join(
        character if _is_printable(character) else character.encode("unicode_escape").decode() for character in text
    )


def _is_printable(character: str) -> bool:
    return character in ALLOWED_CHARACTERS or unicodedata.category(character) not in ESCAPED_CATEGORIES
