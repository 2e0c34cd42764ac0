"""A delta as a model of MLflow's: a reference to the registry, which answers as `Learner.predict(task=…)` does."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import pandas as pd
from mlflow.pyfunc import PythonModel

from continual.backbone import Backbone, load_backbone
from continual.errors import InputError
from continual.predict import Prediction, Predictor
from registry import Champion, NotFound, Registry
from registry.secrets import HIDDEN
from tasks import Text

PLACES = {"registry": "CONTINUAL_REGISTRY_URL", "blobs": "CONTINUAL_BLOBS_URL"}


@final
class DeltaModel(PythonModel):  # type: ignore[misc]  # MLflow's classes are not typed
    """Answers with the one delta that it names, whichever serves meanwhile."""

    def load_context(self, context: Any) -> None:
        """Find the delta in the registry, and load it and its backbone.

        Raises NotFound or BlobError where the registry does not hold it any more, InputError where it is not reached.
        """
        config: Mapping[str, str] = context.model_config
        backbone = _backbone(config)
        with Registry.open(_place(config, "registry"), _place(config, "blobs")) as registry:
            pinned = _pinned(registry, config)
            self.task = pinned.task
            self.predictor = Predictor(backbone, registry, serving=(pinned,))
            self.predictor.load(self.task)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row per text, as `continual predict --task` answers; `label` and `score` among the columns."""
        found = self.predictor.predict(_texts(model_input), task=self.task)
        return pd.DataFrame([asdict(answer) for answer in found], columns=list(Prediction.__dataclass_fields__))


def _place(config: Mapping[str, str], name: str) -> str:
    """Where the registry or its blobs are: as the environment says, else where they were.

    Raises InputError where a secret is needed, or nothing is there: a registry must not be made by reading.
    """
    place, variable = os.environ.get(PLACES[name]) or config[name], PLACES[name]
    if HIDDEN in place:
        raise InputError(
            f"the {name} of {config['delta']} is at {place}; set {variable} to its whole URL, with secrets"
        )
    file = Path(place.removeprefix("sqlite:///"))
    if ("://" not in place or place.startswith("sqlite:///")) and not file.exists():
        raise InputError(f"the {name} of {config['delta']} is not at {file}; set {variable} to where it is now")
    return place


def _pinned(registry: Registry, config: Mapping[str, str]) -> Champion:
    name, digest = config["delta"], config["digest"]
    stored = registry.delta(name)
    if stored.values != digest:
        raise NotFound(
            f"{name} has digest {stored.values} in this registry, and the model is of {digest}: it is another "
            f"registry. Set {' and '.join(PLACES.values())} to the model's own."
        )
    return Champion(
        task=stored.task,
        delta=name,
        method=stored.method,
        settings=stored.settings,
        budget=stored.budget,
        digest=digest,
    )


def _backbone(config: Mapping[str, str]) -> Backbone:
    backbone = load_backbone(config["backbone"], device=config["device"], dtype=config["dtype"])
    if backbone.fingerprint != config["fingerprint"]:
        raise InputError(
            f"backbone {config['backbone']!r} has fingerprint {backbone.fingerprint}, and {config['delta']} was "
            f"learned on {config['fingerprint']}; give that one: load_model(…, model_config={{'backbone': …}})"
        )
    return backbone


def _texts(frame: pd.DataFrame) -> list[Text]:
    """The texts of a frame's column `text`, or of its only one without a name, as MLflow makes it of a list."""
    column = "text" if "text" in frame else 0
    if column not in frame:
        raise InputError(f"columns {list(frame)} hold no texts; give a column `text`, or a list of texts")
    return [text if isinstance(text, str) else tuple(text) for text in frame[column]]
