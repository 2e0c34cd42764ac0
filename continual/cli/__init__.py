"""The command line: `continual demo | run | learn | predict | report | tasks | deltas | lineage | similar | …`.

Standard output holds the answer, one JSON document with `--json`; progress and messages go to standard error.
Exit codes: 0 done · 2 something that could be checked before anything was learned · 1 a task failed while running.
"""

import io
import logging
import os
import sys
from typing import TextIO, final

from rich.logging import RichHandler

from continual.cli.options import app, err, print_message
from continual.escaping import escape_control_characters
from registry import redact
from tasks.errors import ContinualError

# isort: off
# Each adds its commands, in the order in which `continual --help` shows them.
from continual.cli import learn  # noqa: F401
from continual.cli import migrate  # noqa: F401
from continual.cli import compare  # noqa: F401
from continual.cli import arrivals  # noqa: F401
from continual.cli import listings  # noqa: F401
from continual.cli import serve  # noqa: F401
from continual.cli import study  # noqa: F401
from continual.cli import query  # noqa: F401
from continual.cli import versions  # noqa: F401
from continual.cli import keys  # noqa: F401
from continual.cli import exchange  # noqa: F401
from continual.cli import mlflow  # noqa: F401
from continual.cli import database  # noqa: F401
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; every known error becomes one message and its exit code."""
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale; half a surrogate pair is its JSON escape
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = RichHandler(console=err, show_path=False, show_time=False)
    handler.addFilter(_without_secrets)
    handler.setFormatter(EscapingFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        app()
    except ContinualError as error:
        err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        # A message is searched and pasted whole.
        print_message(redact(str(error)))
        sys.exit(error.exit_code)


def _nowhere() -> TextIO:
    """In place of a stream that was closed before the program began (`>&-`), which Python leaves out."""
    return open(os.devnull, "w", encoding="utf-8")


def _without_secrets(record: logging.LogRecord) -> bool:
    """Libraries log the URLs that they are given."""
    record.msg, record.args = redact(record.getMessage()), ()
    return True


@final
class EscapingFormatter(logging.Formatter):
    """Log messages that quote others."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_control_characters(super().format(record))
