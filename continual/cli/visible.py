"""Log messages as a terminal may show them."""

import logging
from typing import final

from continual.visible import visible


@final
class Visible(logging.Formatter):
    """Log messages that quote others."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))
