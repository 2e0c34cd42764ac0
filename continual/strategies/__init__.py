"""Strategies of continual learning that isolated deltas are compared with: for each, one short file."""

from continual.strategies.compare import compare, watched
from continual.strategies.offered import DEFAULT, STRATEGIES, offered, require_known
from continual.strategies.strategy import Strategy

__all__ = [
    "DEFAULT",
    "STRATEGIES",
    "Strategy",
    "compare",
    "offered",
    "require_known",
    "watched",
]
