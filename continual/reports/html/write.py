"""Write pages to files."""

from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from uuid import uuid4

from tasks.errors import InputError


def check_writable(file: Path) -> None:
    """Check, before a page is computed, that `write_page` can write the file.

    Raises:
        InputError: It cannot.
    """
    try:
        if file.exists() and not file.is_file():
            raise InputError(f"{file} is no file that a page could replace. Give the name of one, such as report.html.")
        with NamedTemporaryFile(dir=file.parent, suffix=".draft"):
            pass
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error}. Give another place.") from error


def write_page(file: Path, html: str) -> None:
    """Write a page to a file atomically; an existing file is replaced only by the complete page.

    Raises:
        InputError: The file cannot be written.
    """
    check_writable(file)
    try:
        _replace(file, html)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error}. Give another place.") from error


def _replace(file: Path, html: str) -> None:
    draft = file.with_name(f".{uuid4().hex}.draft")
    try:
        draft.write_text(html, encoding="utf-8")
        draft.replace(file)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise
