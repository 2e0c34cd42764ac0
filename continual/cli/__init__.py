"""The command line: `continual demo | run | learn | predict | report | tasks | deltas | …`.

Standard output holds the answer, one JSON document with `--json`; progress and messages go to standard error.
Exit codes: 0 done · 2 an error that could be checked before anything was learned · 1 a task failed while running.
"""

import atexit
import gc
import io
import os
import sys
from typing import TextIO

from continual.cli.commands import app
from continual.cli.logs import log_messages
from continual.cli.options import err, print_message
from registry import redact
from tasks.errors import ContinualError

# isort: off
# Each module adds its commands; this is their order in `continual --help`.
from continual.cli import init  # noqa: F401
from continual.cli import run  # noqa: F401
from continual.cli import demo  # noqa: F401
from continual.cli import predict  # noqa: F401
from continual.cli import report  # noqa: F401
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

PANELS = {
    "Learn": ("init", "demo", "run", "learn", "arrivals", "watch", "migrate"),
    "Ask": ("predict", "serve", "keys"),
    "Look": ("report", "errors", "tasks", "deltas", "lineage", "similar", "query", "audit", "ui", "mlflow"),
    "Study": ("compare", "study"),
    "Exchange": ("export", "import"),
    "Keep": ("verify", "purge", "gc", "db"),
}
PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}
for command_info in app.registered_commands:
    command_info.rich_help_panel = PANEL_OF[command_info.name or str(getattr(command_info.callback, "__name__", ""))]
for group_info in app.registered_groups:
    group_info.rich_help_panel = PANEL_OF[str(group_info.name)]


def main() -> None:
    """Run the command line; a `ContinualError` becomes one message and its exit code."""
    gc.set_threshold(100_000, 20, 100)  # torch and transformers make a million objects that live to the end:
    atexit.register(gc.freeze)  # to search them for garbage takes a third of a command's start and end
    sys.stdout, sys.stderr = sys.stdout or _null_stream(), sys.stderr or _null_stream()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # UTF-8 in every locale; half a surrogate pair becomes its JSON escape
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    log_messages()
    try:
        app()
    except ContinualError as error:
        err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        # Unwrapped: people search for messages and paste them.
        print_message(redact(str(error)))
        sys.exit(error.exit_code)


def _null_stream() -> TextIO:
    """Replace a standard stream that is None, since it was closed before the program began (`>&-`)."""
    return open(os.devnull, "w", encoding="utf-8")
