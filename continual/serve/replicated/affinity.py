"""Task affinity: requests of one group of tasks go to the same replica, which has their deltas cached."""

from collections import Counter
from zlib import crc32

from pydantic import BaseModel, ValidationError

AFFINITY_GROUPS = 16  # per replica: with many groups, tasks are spread evenly
PREDICT_PATH, GENERATION_PATHS = "/v1/predict", ("/v1/completions", "/v1/chat/completions")


class _PredictRow(BaseModel):
    task: str | None = None


class _PredictBody(BaseModel):
    rows: list[_PredictRow]


class _GenerationBody(BaseModel):
    model: str


def affinity_group(path: str, body: bytes, *, groups: int) -> str:
    """Return the group of the task that a request names, "" if it names none.

    If its rows name several tasks, the most frequent group counts. A body that cannot be read has no group: the
    replica reports the mistake.

    Args:
        path: The request's path.
        body: The request's body.
        groups: Number of groups of all replicas.
    """
    try:
        if path in GENERATION_PATHS:
            return _group(_GenerationBody.model_validate_json(body).model, groups)
        rows = _PredictBody.model_validate_json(body).rows if path == PREDICT_PATH else []
    except ValidationError:
        return ""
    counts = Counter(_group(row.task, groups) for row in rows if row.task is not None)
    return counts.most_common(1)[0][0] if counts else ""


def _group(task: str, groups: int) -> str:
    return str(crc32(task.encode(errors="replace")) % groups)  # `hash` differs between processes
