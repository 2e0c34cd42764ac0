"""Strategies of continual learning that isolated deltas are compared with: for each, one short file."""

from continual.experiments.strategies.catalog import STRATEGIES, select_strategies
from continual.experiments.strategies.compare import compare_strategies, progress_name
from continual.experiments.strategies.strategy import Strategy

__all__ = [
    "STRATEGIES",
    "Strategy",
    "compare_strategies",
    "progress_name",
    "select_strategies",
]
