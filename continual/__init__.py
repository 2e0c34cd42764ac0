"""Continual multi-task learning: one frozen transformer, one small delta per task, a registry that remembers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continual.inference.predictor import Prediction
    from continual.learner import Learner
    from registry import Registry
    from tasks import Stream, TaskSpec, read_stream, read_task

__all__ = ["Learner", "Prediction", "Registry", "Stream", "TaskSpec", "read_stream", "read_task"]

_HOMES = {
    "Learner": "continual.learner",
    "Prediction": "continual.inference.predictor",
    "Registry": "registry",
    "Stream": "tasks",
    "TaskSpec": "tasks",
    "read_stream": "tasks",
    "read_task": "tasks",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for: `continual deltas` need not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'continual' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
