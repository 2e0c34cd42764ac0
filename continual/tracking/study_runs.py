"""The MLflow run of a study: its settings, metrics, tables as JSON and figures as images."""

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
_FORBIDDEN_IN_METRICS = re.compile(r"[^\w.\- /]+")  # characters that MLflow forbids in a metric's name


def log_study(registry: Registry, locations: Locations, about: Mapping[str, Any], result: "Result") -> None:
    """Log a study to its run, which is the same for equal settings, tasks and seeds.

    An unreachable MLflow only causes a warning: the study's store holds all results.

    Args:
        registry: The registry.
        locations: Where MLflow is.
        about: What identifies the study: its name, stream, backbone, tasks, seeds and settings, as JSON.
        result: The sections and metrics.
    """
    try:
        _log(connect(registry, locations), about, result)
    except Exception as error:  # MLflow raises what its store, its HTTP client or its database raises
        line = (str(error).splitlines() or [""])[0]
        reason = redact(f"{type(error).__name__}: {line}", locations.mlflow, locations.registry, locations.blobs)
        log.warning(
            "the study could not be logged to MLflow at %s; run the command again to log it: %s",
            redact(locations.mlflow),
            reason,
        )


def _log(context: MlflowClientContext, about: Mapping[str, Any], result: "Result") -> None:
    key = context.key("study", json.dumps(about, sort_keys=True))
    tags = {name: str(about[name]) for name in ("study", "stream", "backbone")}
    existing = next(iter(context.find_runs("key", key)), None)
    run = existing or context.client.create_run(
        context.experiment, tags=context.run_tags(key, name=f"{about['study']}: {about['stream']}", **tags)
    )
    run_id, started_at = run.info.run_id, datetime.fromtimestamp(run.info.start_time / MILLISECONDS, UTC)
    metrics = {(_FORBIDDEN_IN_METRICS.sub(" ", metric), 0): value for metric, value in result.metrics.items()}
    context.log(run_id, {} if existing else flatten(about), metrics, timestamp=started_at)
    context.client.log_dict(run_id, dict(about), "study.json")
    for title, table in result.to_json.items():
        context.client.log_dict(run_id, {"rows": table}, f"{_file_name(title)}.json")
    for title, figure in result.figures.items():
        context.client.log_figure(run_id, figure, f"{_file_name(title)}.png")
    context.client.set_terminated(run_id)


def _file_name(title: str) -> str:
    """Return a file name made of a section's title."""
    return re.sub(r"\W+", "_", title.lower()).strip("_")
