"""Log messages as a terminal may show them."""

import logging
from typing import final

from continual.visible import escape_control_characters


@final
class EscapingFormatter(logging.Formatter):
    """Log messages that quote others."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_control_characters(super().format(record))
