"""Input lines of `continual predict`: JSON objects with a text, or plain text."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from continual.errors import InputLineError
from tasks import Text


def read_inputs(file: str) -> list[Text]:
    """Return the texts of a file, or of standard input if `file` is `-`; blank lines are skipped.

    Raises:
        InputLineError: The file cannot be read as UTF-8, or a line has no text; the message has its number.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        lines = data.decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputLineError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    return list(parse_inputs(lines, file=file))


def parse_inputs(lines: Iterable[str], *, file: str) -> Iterable[Text]:
    """Yield the text of each line: `{"text": "…"}`, a pair `{"text": ["…", "…"]}`, or the line itself.

    Args:
        lines: The lines; blank ones are skipped.
        file: The file's name, for messages.

    Raises:
        InputLineError: A line has no text.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse(line, f"{file}:{number}") if line.lstrip().startswith("{") else line.rstrip("\r")


def _parse(line: str, where: str) -> Text:
    allowed = 'allowed: {"text": "…"}, {"text": ["…", "…"]}, or a plain line that does not start with {'
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputLineError(f"{where}: {line[:80]!r} is not JSON ({error}); {allowed}") from None
    match value:
        case {"text": str(text)}:
            return text
        case {"text": [str(first), str(second)]}:
            return first, second
    raise InputLineError(f"{where}: {line[:80]!r} has no text; {allowed}")
