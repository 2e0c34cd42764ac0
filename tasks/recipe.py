"""The part of a task's spec that determines what is learned from its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The location of the rows, whether suspicious ones are refused, and whether the router may choose the task.
FREE_KEYS = ("source", "strict", "route")
# The number of jointly trained tasks, and activation checkpointing.
FREE_BUDGET_KEYS = ("joint", "checkpointing")


def recipe_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a spec, as JSON, that determine what is learned from its rows.

    >>> recipe_settings({"text": "message", "source": {"path": "csv"}, "budget": {"epochs": 3, "joint": 2}})
    {'text': 'message', 'budget': {'epochs': 3}}
    """
    settings = {key: value for key, value in spec.items() if key not in FREE_KEYS}
    if budget := settings.get("budget"):
        settings["budget"] = {key: value for key, value in budget.items() if key not in FREE_BUDGET_KEYS}
    return settings
