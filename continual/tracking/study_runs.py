"""The run of a study: its settings, the numbers that sum it up, its tables as JSON, its figures as pictures."""

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from continual.settings import Locations
from continual.tracking.client import MILLISECONDS, MlflowClientContext, connect, flatten
from registry import Registry, redact

if TYPE_CHECKING:
    from continual.experiments.studies import Result

log = logging.getLogger(__name__)
_NOT_IN_NAMES = re.compile(r"[^\w.\- /]+")  # what MLflow takes no metric's name with


def log_study(registry: Registry, places: Locations, about: Mapping[str, Any], result: "Result") -> None:
    """Log a study as one run, the same for the same settings, tasks and seeds; `about` says which they are.

    MLflow being away is said and nothing else: the study's ledger holds all that was measured.
    """
    try:
        _tell(connect(registry, places), about, result)
    except Exception as error:  # MLflow raises what its store, its HTTP client or its database raises
        line = (str(error).splitlines() or [""])[0]
        told = redact(f"{type(error).__name__}: {line}", places.mlflow, places.registry, places.blobs)
        log.warning(
            "MLflow at %s could not be told of the study; give the command again to tell it: %s",
            redact(places.mlflow),
            told,
        )


def _tell(to: MlflowClientContext, about: Mapping[str, Any], result: "Result") -> None:
    key = to.key("study", json.dumps(about, sort_keys=True))
    own = {name: str(about[name]) for name in ("study", "stream", "backbone")}
    known = next(iter(to.find_runs("key", key)), None)
    run = known or to.client.create_run(
        to.experiment, tags=to.run_tags(key, name=f"{about['study']}: {about['stream']}", **own)
    )
    name, began = run.info.run_id, datetime.fromtimestamp(run.info.start_time / MILLISECONDS, UTC)
    metrics = {(_NOT_IN_NAMES.sub(" ", metric), 0): value for metric, value in result.metrics.items()}
    to.log(name, {} if known else flatten(about), metrics, at=began)
    to.client.log_dict(name, dict(about), "study.json")
    for title, table in result.to_json.items():
        to.client.log_dict(name, {"rows": table}, f"{_file(title)}.json")
    for title, figure in result.figures.items():
        to.client.log_figure(name, figure, f"{_file(title)}.png")
    to.client.set_terminated(name)


def _file(title: str) -> str:
    """A title as the name of a file."""
    return re.sub(r"\W+", "_", title.lower()).strip("_")
