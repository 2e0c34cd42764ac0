"""Logs on standard error, as text or as one JSON object a line, without passwords and control characters."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, final

from rich.logging import RichHandler

from continual.cli.options import err, print_message
from continual.escaping import escape_control_characters
from registry import redact

SERVER = "continual.serve"
ACCESS = "continual.serve.core.access_log"


class LogFormat(StrEnum):
    """The form of a log's records."""

    TEXT = "text"
    JSON = "json"


def log_messages() -> None:
    """Log the warnings of all libraries on standard error, as text."""
    handler = _configure(RichHandler(console=err, show_path=False, show_time=False), _TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def log_requests(form: LogFormat, *, fields: tuple[str, ...]) -> Callable[[str], None]:
    """Log a server's requests on standard error too; as JSON, all other records as well.

    Args:
        form: The form of the records.
        fields: Attributes of an access record, which a JSON object has as fields.

    Returns:
        A function that prints a message of the command in this form.
    """
    handler = logging.StreamHandler(sys.stderr)  # far cheaper than Rich's
    if form is LogFormat.JSON:
        logging.basicConfig(level=logging.WARNING, handlers=[_configure(handler, _JsonFormatter(fields))], force=True)
        logging.getLogger(SERVER).setLevel(logging.INFO)
        return logging.getLogger(SERVER).info
    log = logging.getLogger(ACCESS)
    log.addHandler(_configure(handler, _TextFormatter("%(asctime)s %(message)s")))
    log.setLevel(logging.INFO)
    log.propagate = False
    return print_message


def _configure(handler: logging.Handler, formatter: logging.Formatter) -> logging.Handler:
    handler.addFilter(_redact_record)
    handler.setFormatter(formatter)
    return handler


def _redact_record(record: logging.LogRecord) -> bool:
    """Redact passwords: libraries log the URLs that they open."""
    record.msg, record.args = redact(record.getMessage()), ()
    return True


@final
class _TextFormatter(logging.Formatter):
    """A formatter that escapes control characters, which quoted texts and names may hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record with control characters escaped."""
        return escape_control_characters(super().format(record))


@final
class _JsonFormatter(logging.Formatter):
    """A formatter that makes one line of ASCII JSON of a record.

    Args:
        fields: Attributes of a record that become fields where it has them.
    """

    def __init__(self, fields: tuple[str, ...]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Format a record: time, level, logger, message, the fields that it has, and its traceback if any."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        document |= {name: getattr(record, name) for name in self._fields if hasattr(record, name)}
        if record.exc_info:
            document["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(document)
