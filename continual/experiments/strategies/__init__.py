"""Continual-learning strategies that isolated deltas are compared with, one file each."""

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
