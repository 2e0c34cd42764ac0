"""Deltas as a model of MLflow's: a reference to the registry, which answers as `Learner.predict` does."""

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, final
from weakref import finalize

import pandas as pd
from mlflow.pyfunc import PythonModel

from continual.backbones.backbone import Backbone, load_backbone
from continual.errors import InputLineError
from continual.inference.predictor import Prediction, Predictor
from registry import Champion, NotFound, Registry
from registry.redaction import MASK
from tasks import Text
from tasks.errors import InputError

LOCATION_ENV = {"registry": "CONTINUAL_REGISTRY_URL", "blobs": "CONTINUAL_BLOBS_URL"}


@final
class DeltaModel(PythonModel):  # type: ignore[misc]  # MLflow's classes are not typed
    """Answers with the deltas that it names, whichever serve meanwhile: with the one of a task, or those of a stream.

    What names `delta` and `digest` is of one task, and answers all texts by it. What names `deltas`, digests by name,
    is of a stream, and has the settings of its router.
    """

    def load_context(self, context: Any) -> None:
        """Find the deltas in the registry, load the backbone, and the delta or the router.

        Raises NotFound or BlobError where the registry does not hold them any more, InputError where it is not reached.
        """
        config: Mapping[str, Any] = context.model_config
        backbone = _backbone(config)
        registry = Registry.open(_place(config, "registry"), _place(config, "blobs"))
        finalize(self, registry.close)
        pinned = _pinned(registry, config)
        settings = {name: config[name] for name in ("router", "false_abstentions") if name in config}
        self.alone = Lock()  # a server asks from many threads, and a backbone has one set of deltas on it at once
        self.task = None if "deltas" in config else pinned[0].task
        self.predictor = Predictor(backbone, registry, serving=pinned, **settings)
        if self.task is not None:
            self.predictor.load_delta(self.task)
        else:
            with suppress(InputError):  # nothing can be routed, which texts without a task will be told
                self.predictor.build_router()

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row per text, as `continual predict` answers; `label` and `score` among the columns.

        model_input: a column `text`, and perhaps `task`, null where the router is to choose; or texts alone.
        """
        frame = _frame(model_input)
        with self.alone:
            found = self.predictor.predict(_texts(frame), task=self.task or _tasks(frame))
        columns = list(Prediction.__dataclass_fields__)
        return pd.DataFrame([asdict(answer) for answer in found], columns=columns, dtype=object)  # NaN is no JSON


def _place(config: Mapping[str, Any], name: str) -> str:
    """Where the registry or its blobs are: as the environment says, else where they were.

    Raises InputError where a secret is needed, or nothing is there: a registry must not be made by reading.
    """
    place, variable, of = os.environ.get(LOCATION_ENV[name]) or config[name], LOCATION_ENV[name], _called(config)
    if MASK in place:
        raise InputError(f"the {name} of {of} is at {place}; set {variable} to its whole URL, with secrets")
    file = Path(place.removeprefix("sqlite:///"))
    if ("://" not in place or place.startswith("sqlite:///")) and not file.exists():
        raise InputError(f"the {name} of {of} is not at {file}; set {variable} to where it is now")
    return str(place)


def _called(config: Mapping[str, Any]) -> str:
    return f"stream {config['stream']}" if "deltas" in config else str(config["delta"])


def _pinned(registry: Registry, config: Mapping[str, Any]) -> list[Champion]:
    """The deltas that are named. Raises NotFound where one was purged, or has other values here."""
    named: Mapping[str, str] = config["deltas"] if "deltas" in config else {config["delta"]: config["digest"]}
    serving = {champion.delta: champion for champion in registry.champions(config["fingerprint"])}
    found = [serving.get(name) or _stored(registry, name) for name in named]
    for own, digest in zip(found, named.values(), strict=True):
        if own.digest != digest:
            raise NotFound(
                f"{own.delta} has digest {own.digest} in this registry, and the model is of {digest}: it is another "
                f"registry. Set {' and '.join(LOCATION_ENV.values())} to the model's own."
            )
    return found


def _stored(registry: Registry, name: str) -> Champion:
    """A delta as it served, though it does not any more."""
    stored = registry.delta(name)
    return Champion(
        task=stored.task,
        delta=name,
        method=stored.method,
        settings=stored.settings,
        budget=stored.budget,
        digest=stored.values,
    )


def _backbone(config: Mapping[str, Any]) -> Backbone:
    backbone = load_backbone(config["backbone"], device=config["device"], dtype=config["dtype"])
    if backbone.fingerprint != config["fingerprint"]:
        raise InputError(
            f"backbone {config['backbone']!r} has fingerprint {backbone.fingerprint}, and {_called(config)} was "
            f"learned on {config['fingerprint']}; give that one: load_model(…, model_config={{'backbone': …}})"
        )
    return backbone


def _frame(given: Any) -> pd.DataFrame:
    """What is asked, as a frame: of a server it may come as columns by their names, or as a list of texts."""
    if isinstance(given, pd.DataFrame):
        return given
    return pd.DataFrame(dict(given) if isinstance(given, Mapping) else {"text": list(given)})


def _texts(frame: pd.DataFrame) -> list[Text]:
    """The texts of a frame's column `text`, or of its only one without a name, as MLflow makes it of a list."""
    column = "text" if "text" in frame else 0
    if column not in frame:
        raise InputError(f"columns {list(frame)} hold no texts; give a column `text`, or a list of texts")
    return [_text(given, row) for row, given in enumerate(frame[column])]


def _text(given: Any, row: int) -> Text:
    if isinstance(given, str):
        return given
    parts = () if isinstance(given, Mapping) or not isinstance(given, Collection) else tuple(given)
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise InputLineError(f"row {row} of column `text` is {given!r}; give a text, or a pair of texts")
    return str(parts[0]), str(parts[1])


def _tasks(frame: pd.DataFrame) -> list[str | None]:
    """The task that each row names, None where the router is to choose."""
    if "task" not in frame:
        return [None] * len(frame)
    return [_task(given, row) for row, given in enumerate(frame["task"])]


def _task(given: Any, row: int) -> str | None:
    if isinstance(given, str):
        return given
    if not (pd.api.types.is_scalar(given) and pd.isna(given)):
        raise InputError(f"row {row} of column `task` is {given!r}; give a task's name, or null for the router")
    return None
