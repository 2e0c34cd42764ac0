"""Task affinity: requests of one group of tasks go to the same replica, which has their deltas cached."""

from collections import Counter
from json import JSONDecodeError
from zlib import crc32

from pydantic import BaseModel, ValidationError

from continual.serve.core.bodies import check_structure, parse_body
from tasks.errors import ContinualError

AFFINITY_GROUPS = 16  # per replica: with many groups, tasks are spread evenly
PREDICT_PATH, GENERATION_PATHS = "/v1/predict", ("/v1/completions", "/v1/chat/completions")


class _PredictRow(BaseModel):
    task: str | None = None


class _PredictBody(BaseModel):
    rows: list[_PredictRow]


class _GenerationBody(BaseModel):
    model: str


def affinity_group(path: str, body: bytes, *, groups: int, rows: int) -> str:
    """Return the group of the task that a request names, "" if it names none.

    If its rows name several tasks, the most frequent group counts. A body that cannot be read, or is larger than one
    may be, has no group: the replica reports the mistake.

    Args:
        path: The request's path.
        body: The request's body.
        groups: Number of groups of all replicas.
        rows: Inputs that one request may hold.
    """
    if path != PREDICT_PATH and path not in GENERATION_PATHS:
        return ""
    try:
        value = parse_body(body, rows=rows)
        check_structure(value, rows=rows)
        if path in GENERATION_PATHS:
            return _group(_GenerationBody.model_validate(value).model, groups)
        named = _PredictBody.model_validate(value).rows
    except (JSONDecodeError, ContinualError, ValidationError):
        return ""
    counts = Counter(_group(row.task, groups) for row in named if row.task is not None)
    return counts.most_common(1)[0][0] if counts else ""


def _group(task: str, groups: int) -> str:
    return str(crc32(task.encode(errors="replace")) % groups)  # `hash` differs between processes
