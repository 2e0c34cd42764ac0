"""MLflow's model of deltas: a reference to the registry that predicts as `Learner.predict` does."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, final
from weakref import finalize

import pandas as pd
from mlflow.pyfunc import PythonModel

from continual.backbones.backbone import Backbone, load_backbone
from continual.inference.input_rows import parse_rows, predict_rows
from continual.inference.predictor import ANSWER_FIELDS, Predictor
from registry import Champion, NotFound, Registry, sqlite_file
from registry.redaction import MASK
from tasks.errors import InputError

LOCATION_ENV = {"registry": "CONTINUAL_REGISTRY_URL", "blobs": "CONTINUAL_BLOBS_URL"}


@final
class DeltaModel(PythonModel):  # type: ignore[misc]  # MLflow's classes are not typed
    """Predicts with the deltas named in its configuration, whichever deltas are champions now.

    A configuration with `delta` and `digest` is a task's: that delta answers all texts. One with `deltas`, digests by
    name, is a stream's, and has the settings of its router.
    """

    def load_context(self, context: Any) -> None:
        """Load the backbone, and the delta or the router, from the registry.

        Raises:
            NotFound: The registry no longer holds one of the deltas, or holds other values under its name.
            BlobError: A delta's values cannot be read.
            InputError: The registry, its blobs or the backbone is not at the configured location.
        """
        config: Mapping[str, Any] = context.model_config
        backbone = _load_backbone(config)
        registry = Registry.open(_location(config, "registry"), _location(config, "blobs"))
        finalize(self, registry.close)
        pinned = _pinned_champions(registry, config)
        settings = {name: config[name] for name in ("router", "false_abstentions") if name in config}
        self.lock = Lock()  # servers predict from many threads, and a backbone holds one set of deltas at a time
        self.task = None if "deltas" in config else pinned[0].task
        self.predictor = Predictor(backbone, registry, serving=pinned, **settings)
        if self.task is not None:
            self.predictor.load_delta(self.task)
        else:
            # Where nothing can be routed, texts without a task get this error when they are predicted.
            with suppress(InputError):
                self.predictor.build_router()

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Predict one row per text, with the fields of `Prediction` as columns, such as `label` and `score`.

        Args:
            context: MLflow's context; unused.
            model_input: N rows with a column `text`, optionally `task`, null where the router is to choose, and
                further ones, which are handed back; or N texts.
            params: Unused.

        Returns:
            N rows, in order.
        """
        rows = parse_rows(_as_frame(model_input))
        with self.lock:
            predictions = predict_rows(self.predictor, rows, task=self.task)
        answers = [prediction.to_json() for prediction in predictions]
        columns = dict.fromkeys([*ANSWER_FIELDS, *(name for answer in answers for name in answer)])
        return pd.DataFrame(answers, columns=[*columns], dtype=object)  # object columns hold None; NaN is invalid JSON


def _location(config: Mapping[str, Any], name: str) -> str:
    """Return where the registry or its blobs are: from the environment, else from the configuration.

    Raises:
        InputError: The location lacks a secret, or nothing is there: reading must not create a registry.
    """
    variable, subject = LOCATION_ENV[name], _subject(config)
    location = os.environ.get(variable) or config[name]
    if MASK in location:
        raise InputError(f"the {name} of {subject} is at {location}; set {variable} to its whole URL, with secrets")
    file = sqlite_file(location) if "://" in location else Path(location)
    if file and not file.exists():
        raise InputError(f"the {name} of {subject} is not at {file}; set {variable} to where it is now")
    return str(location)


def _subject(config: Mapping[str, Any]) -> str:
    return f"stream {config['stream']}" if "deltas" in config else str(config["delta"])


def _pinned_champions(registry: Registry, config: Mapping[str, Any]) -> list[Champion]:
    """Return the deltas that the configuration names.

    Raises:
        NotFound: A delta was purged, or has other values in this registry.
    """
    digests: Mapping[str, str] = config["deltas"] if "deltas" in config else {config["delta"]: config["digest"]}
    serving = {champion.delta: champion for champion in registry.champions(config["fingerprint"])}
    pinned = [serving.get(name) or _former_champion(registry, name) for name in digests]
    for champion, digest in zip(pinned, digests.values(), strict=True):
        if champion.digest != digest:
            raise NotFound(
                f"{champion.delta} has digest {champion.digest} in this registry, and the model is of {digest}: it is "
                f"another registry. Set {' and '.join(LOCATION_ENV.values())} to the model's own."
            )
    return pinned


def _former_champion(registry: Registry, name: str) -> Champion:
    """Return a delta as it was when it served."""
    stored = registry.delta(name)
    return Champion(
        task=stored.task,
        delta=name,
        method=stored.method,
        settings=stored.settings,
        budget=stored.budget,
        digest=stored.values,
        created_at=stored.created_at,
    )


def _load_backbone(config: Mapping[str, Any]) -> Backbone:
    backbone = load_backbone(config["backbone"], device=config["device"], dtype=config["dtype"])
    if backbone.fingerprint != config["fingerprint"]:
        raise InputError(
            f"backbone {config['backbone']!r} has fingerprint {backbone.fingerprint}, and {_subject(config)} was "
            f"learned on {config['fingerprint']}; give that one: load_model(…, model_config={{'backbone': …}})"
        )
    return backbone


def _as_frame(model_input: Any) -> pd.DataFrame:
    """Return rows by the names of their columns: a server may pass columns by name, or a list of texts."""
    if not isinstance(model_input, pd.DataFrame):
        return pd.DataFrame(dict(model_input) if isinstance(model_input, Mapping) else {"text": list(model_input)})
    return model_input.rename(columns={0: "text"})  # the only column of a list that MLflow converted
