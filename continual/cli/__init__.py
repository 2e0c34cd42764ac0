"""The command line: `continual demo | run | learn | predict | report | tasks | deltas | lineage | similar | …`.

Standard output holds the answer, one JSON document with `--json`; progress and messages go to standard error.
Exit codes: 0 done · 2 something that could be checked before anything was learned · 1 a task failed while running.
"""

import io
import logging
import sys

from rich.logging import RichHandler

from continual.cli.options import app, err
from continual.errors import ContinualError

# Each adds its commands, in the order in which `continual --help` shows them.
# isort: split
from continual.cli import learning  # noqa: F401

# isort: split
from continual.cli import learned  # noqa: F401

# isort: split
from continual.cli import query  # noqa: F401

# isort: split
from continual.cli import versions  # noqa: F401

# isort: split
from continual.cli import exchange  # noqa: F401

# isort: split
from continual.cli import database  # noqa: F401

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; every known error becomes one message and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale; half a surrogate pair is its JSON escape
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = RichHandler(console=err, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    try:
        app()
    except ContinualError as error:
        err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)  # a message is searched and pasted whole
        sys.exit(error.exit_code)
