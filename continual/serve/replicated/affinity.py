"""Which requests had better go to the same replica: those that name tasks of one group, whose deltas then lie there."""

from collections import Counter
from zlib import crc32

from pydantic import BaseModel, ValidationError

AFFINITY_GROUPS = 16  # of tasks for each replica: of many, tasks are spread about evenly
PREDICT, WRITE = "/v1/predict", ("/v1/completions", "/v1/chat/completions")


class _Row(BaseModel):
    task: str | None = None


class _Rows(BaseModel):
    rows: list[_Row]


class _Written(BaseModel):
    model: str


def affinity_group(path: str, body: bytes, *, groups: int) -> str:
    """The group of the task that a request names, of most of its rows where it names several; "" where it names none.

    A body that cannot be read is of no group: the replica says what is wrong with it.
    """
    try:
        if path in WRITE:
            return _group(_Written.model_validate_json(body).model, groups)
        rows = _Rows.model_validate_json(body).rows if path == PREDICT else []
    except ValidationError:
        return ""
    named = Counter(_group(row.task, groups) for row in rows if row.task is not None)
    return named.most_common(1)[0][0] if named else ""


def _group(task: str, groups: int) -> str:
    return str(crc32(task.encode(errors="replace")) % groups)  # the same in every process, as `hash` is not
