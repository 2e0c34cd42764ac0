"""Continual multi-task learning: one frozen transformer, one small delta per task, a SQL registry."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continual.callbacks import RunCallbacks
    from continual.inference.predictor import Prediction
    from continual.learner import Learner
    from registry import Registry
    from tasks import Stream, TaskSpec, read_stream, read_task, task_from_rows

__all__ = [
    "Learner",
    "Prediction",
    "Registry",
    "RunCallbacks",
    "Stream",
    "TaskSpec",
    "read_stream",
    "read_task",
    "task_from_rows",
]

_MODULES = {
    "Learner": "continual.learner",
    "Prediction": "continual.inference.predictor",
    "Registry": "registry",
    "RunCallbacks": "continual.callbacks",
    "Stream": "tasks",
    "TaskSpec": "tasks",
    "read_stream": "tasks",
    "read_task": "tasks",
    "task_from_rows": "tasks",
}


def _require_own_packages() -> None:
    """Raise ImportError where a file such as the user's own tasks.py hides a package of this distribution."""
    for name in ("registry", "tasks"):
        package_file, spec = Path(__file__).resolve().parents[1] / name / "__init__.py", find_spec(name)
        if spec and spec.origin and package_file.exists() and Path(spec.origin).resolve() != package_file:
            raise ImportError(
                f"{spec.origin} hides the package {name!r} that continual imports, {package_file.parent}. "
                "Rename the file, or start Python in another folder.",
                name=name,
            )


_require_own_packages()


def __dir__() -> list[str]:
    """Return the public names, which are imported on first use."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that commands like `continual deltas` start without PyTorch."""
    if name == "__version__":
        from importlib.metadata import version

        from continual.settings import DISTRIBUTION

        return version(DISTRIBUTION)
    if name not in _MODULES:
        raise AttributeError(f"module 'continual' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
