"""A registry of many synthetic deltas, filled in bulk, and one more task to register."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, count
from random import Random
from typing import Any

from sqlalchemy import text

from registry import DataRecord, DeltaRecord, Parent, Registry, Score, SignatureRecord, TaskRecord, delta_name

SPLITS = ("train", "validation", "test")
BACKBONES = ("f00d", "beef", "cafe")
PER_STREAM = 100
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
SPACING = timedelta(seconds=30)  # between one delta and the next
LABELS = [f"label {number}" for number in range(20)]
SPEC = {"source": {"path": "json", "data_files": {"train": "train.jsonl"}}, "text": "text", "label": "label"}
SETTINGS = {"rank": 8, "alpha": 16.0, "sites": ["attn.q", "attn.k", "attn.v", "attn.out", "ffn.in", "ffn.out"]}
BUDGET = {"epochs": 3, "batch_size": 32, "learning_rate": 1e-3, "max_length": 128}
VERSIONS = {"continual": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}
VALUES = 1_350_000  # bytes of a delta of LoRA on minilm; its signature is about as large
# Ten scores of each delta: mode, split, metric, step.
PLACES = (
    *(("curve", "validation", "accuracy", step) for step in range(3)),
    *(("oracle", split, "accuracy", 0) for split in ("validation", "test")),
    ("oracle", "test", "macro_f1", 0),
    *((mode, "test", "accuracy", 0) for mode in ("frozen", "neighbour")),
    *(("routed", "test", metric, None) for metric in ("accuracy", "routing_accuracy")),
)


_Row = dict[str, Any]


@dataclass(frozen=True)
class Filled:
    """The names in a filled registry; `best` holds rows after which a page of `best` may start."""

    deltas: Sequence[str]
    tasks: Sequence[str]
    streams: Sequence[str]
    fingerprints: Sequence[str]
    best: Sequence[int]
    events: int

    def moment(self, share: float) -> datetime:
        """Return a time before which this share of the deltas was learned."""
        return BEGAN + share * len(self.deltas) * SPACING


@dataclass(frozen=True)
class _Delta:
    """The plan of one delta; all ids begin at 1."""

    id: int
    task: int
    version: int
    backbone: int
    parents: tuple[tuple[int, str], ...]
    status: str


def fill(registry: Registry, size: int, random: Random) -> Filled:
    """Insert `size` deltas with all their rows into an empty registry."""
    tasks = size // 2
    plan = _plan(size, tasks, random)
    streams = -(-size // PER_STREAM)
    rows: dict[str, Iterable[_Row]] = {
        "backbones": (_backbone(i, name) for i, name in enumerate(BACKBONES, 1)),
        "tasks": (_task(i) for i in range(1, tasks + 1)),
        "streams": (_stream(i) for i in range(1, streams + 1)),
        "deltas": (_delta(delta) for delta in plan),
        "positions": (_position(delta) for delta in plan),
        "splits": _splits(plan),
        "lineage": _lineage(plan),
        "scores": _scores(plan, random),
        "signatures": (_signature(delta) for delta in plan),
        "events": _events(plan),
    }
    write = _write_sqlite if registry.engine.dialect.name == "sqlite" else _write_postgresql
    for table, values in rows.items():
        write(registry, table, ({"id": number} | row for number, row in enumerate(values, 1)))
    with registry.read_session() as session:
        events = session.execute(text("SELECT COUNT(*) FROM events")).scalar_one()
        mode = "mode = 'oracle' AND split = 'test' AND metric = 'accuracy'"
        best = session.scalars(text(f"SELECT id FROM scores WHERE {mode} LIMIT 1000 OFFSET {2 * size // 3}")).all()
    return Filled(
        deltas=[delta_name(f"task-{delta.task}", delta.version) for delta in plan],
        tasks=[f"task-{i}" for i in range(1, tasks + 1)],
        streams=[f"stream-{i}" for i in range(1, streams + 1)],
        fingerprints=[_fingerprint(delta.task, delta.version, "train") for delta in plan],
        best=best,
        events=events,
    )


def register(registry: Registry, filled: Filled, random: Random) -> Callable[[], str]:
    """Return a function that registers one more task per call: blobs first, then one unit of work."""
    numbers = count()

    def once() -> str:
        number = next(numbers)
        name, content = f"new-{number}", number.to_bytes(8) * (VALUES // 8)
        values, signature = registry.blobs.put(content), registry.blobs.put(content + b"signature")
        delta = DeltaRecord(
            task=name,
            backbone=BACKBONES[0],
            method="lora",
            settings=SETTINGS,
            budget=BUDGET,
            digest=values,
            bytes=VALUES,
            parameters=VALUES // 4,
            share=0.015,
            seed=0,
            labels=tuple(LABELS),
            versions=VERSIONS,
            warm_start="nearest",
            seconds=30.0,
            examples_per_second=400.0,
            data=DataRecord(**_data({split: f"{name}-{split}" for split in SPLITS})),
        )
        scores = [
            Score(split=split, metric=metric, value=0.5, rows=400, step=step, mode=mode)  # type: ignore[arg-type]
            for mode, split, metric, step in PLACES
            if step is not None
        ]
        task = TaskRecord(
            name=name,
            kind="classification",
            metric="accuracy",
            labels=tuple(LABELS),
            spec=SPEC,
            fingerprints={split: f"{name}-{split}" for split in SPLITS},
            rows=dict.fromkeys(SPLITS, 400),
        )
        with registry.unit_of_work() as unit:
            unit.add_task(task)
            return unit.add_delta(
                delta,
                parents=[Parent(delta=random.choice(filled.deltas), kind="warm_start", weight=1.0, score=0.5)],
                scores=scores,
                signature=SignatureRecord(digest=signature, rows=400, pooling="mean"),
            )

    return once


def _plan(size: int, tasks: int, random: Random) -> list[_Delta]:
    """Draw the plan: tasks arrive in order and are learned again at random; three in four deltas have a parent."""
    last: dict[int, int] = {}  # by task: its newest delta
    versions: dict[int, int] = {}
    plan: list[_Delta] = []
    for number in range(1, size + 1):
        new = len(last) + 1
        again = last and (len(last) == tasks or random.random() < 0.5 * number / size + 0.25)
        task = random.randint(1, len(last)) if again else new
        parents = [(last[task], "retrained")] if task in last else []
        if plan and random.random() < 0.6:
            parents.append((random.randint(1, number - 1), "warm_start"))
        elif plan and random.random() < 0.1:
            parents += [(parent, "merged") for parent in {random.randint(1, number - 1) for _ in range(3)}]
        backbone = 1 if task % 10 else 2 + task % 20 // 10
        versions[task] = versions.get(task, 0) + 1
        plan.append(_Delta(number, task, versions[task], backbone, tuple(parents), "archived"))
        last[task] = number
    newest = set(last.values())
    return [
        _Delta(d.id, d.task, d.version, d.backbone, d.parents, "champion" if d.id in newest else d.status) for d in plan
    ]


def _backbone(number: int, fingerprint: str) -> _Row:
    columns = {"family": "bert", "hidden_size": 384, "parameters": 22_000_000, "pooling": "mean", "created_at": _at(0)}
    return {"fingerprint": fingerprint, "name": f"backbone-{number}"} | columns


def _task(number: int) -> _Row:
    return {
        "name": f"task-{number}",
        "kind": "classification",
        "metric": "accuracy",
        "labels": json.dumps(LABELS),
        "spec": json.dumps(SPEC),
        "fingerprints": json.dumps({split: _fingerprint(number, 1, split) for split in SPLITS}),
        "rows": json.dumps(dict.fromkeys(SPLITS, 400)),
        "created_at": _at(number),
    }


def _stream(number: int) -> _Row:
    columns = {"backbone_id": 1, "spec": json.dumps({"name": f"stream-{number}"}), "digest": _digest(number)}
    return {"name": f"stream-{number}"} | columns | {"created_at": _at(number * PER_STREAM)}


def _delta(delta: _Delta) -> _Row:
    return {
        "task_id": delta.task,
        "backbone_id": delta.backbone,
        "version": delta.version,
        "method": "lora",
        "settings": json.dumps(SETTINGS),
        "budget": json.dumps(BUDGET),
        "digest": _digest(delta.id),
        "bytes": VALUES,
        "parameters": VALUES // 4,
        "share": 0.015,
        "seed": 0,
        "labels": json.dumps(LABELS),
        "versions": json.dumps(VERSIONS),
        "status": delta.status,
        "warm_start": "nearest",
        "seconds": 30.0,
        "data": json.dumps(_data({split: _fingerprint(delta.task, delta.version, split) for split in SPLITS})),
        "mlflow_run": f"run-{delta.id}",
        "created_at": _at(delta.id),
    }


def _data(fingerprints: dict[str, str]) -> _Row:
    rows = dict.fromkeys(fingerprints, 400)
    return {"spec": SPEC, "folder": None, "seed": 0, "fingerprints": fingerprints, "rows": rows}


def _position(delta: _Delta) -> _Row:
    stream, number = divmod(delta.id - 1, PER_STREAM)
    place = {"stream_id": stream + 1, "number": number, "task_id": delta.task, "task_name": f"task-{delta.task}"}
    return place | {"recipe": _digest(delta.id), "state": "learned", "attempts": 1, "delta_id": delta.id}


def _splits(plan: Sequence[_Delta]) -> Iterator[_Row]:
    for delta in plan:
        for split in SPLITS:
            fingerprint = _fingerprint(delta.task, delta.version, split)
            yield {"delta_id": delta.id, "split": split, "fingerprint": fingerprint, "rows": 400}


def _lineage(plan: Sequence[_Delta]) -> Iterator[_Row]:
    for delta in plan:
        for parent, kind in delta.parents:
            yield {"child_id": delta.id, "parent_id": parent, "kind": kind, "weight": 1.0, "score": 0.5}


def _scores(plan: Sequence[_Delta], random: Random) -> Iterator[_Row]:
    for delta in plan:
        stream, number = divmod(delta.id - 1, PER_STREAM)
        of = {"delta_id": delta.id, "task_id": delta.task, "rows": 400}
        for mode, split, metric, step in PLACES:
            value = random.random()
            place = {"mode": mode, "split": split, "metric": metric, "step": number if step is None else step}
            place["stream_id"] = stream + 1 if step is None else None
            yield of | place | {"value": value, "low": value - 0.01, "high": value + 0.01}


def _signature(delta: _Delta) -> _Row:
    return {"delta_id": delta.id, "digest": _digest(delta.task), "rows": 400, "layer": -1, "pooling": "mean"}


def _events(plan: Sequence[_Delta]) -> Iterator[_Row]:
    for delta in plan:
        of = {"task_id": delta.task, "delta_id": delta.id, "created_at": _at(delta.id)}
        yield of | {"what": "learned", "reason": None}
        if delta.version > 1:
            yield of | {"what": "promoted", "reason": "validation accuracy is no lower"}


def _at(number: int) -> str:
    return (BEGAN + number * SPACING).strftime("%Y-%m-%d %H:%M:%S.%f")


def _digest(number: int) -> str:
    return f"{number:064x}"


def _fingerprint(task: int, version: int, split: str) -> str:
    return f"{task:040x}-{version}-{split}"


def _write_sqlite(registry: Registry, table: str, rows: Iterator[_Row]) -> None:
    columns, values = _split(rows)
    with registry.engine.begin() as connection:
        marks = ", ".join("?" * len(columns))
        connection.connection.cursor().executemany(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", list(values)
        )


def _write_postgresql(registry: Registry, table: str, rows: Iterator[_Row]) -> None:
    columns, values = _split(rows)
    with registry.engine.begin() as connection:
        connection.execute(text("SET TIME ZONE 'UTC'"))
        with connection.connection.cursor().copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
            for row in values:
                copy.write_row(row)
        last = f"(SELECT MAX(id) FROM {table})"
        connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {last})"))
    with registry.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"VACUUM ANALYZE {table}"))


def _split(rows: Iterator[_Row]) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Return the columns, and the rows' values in their order."""
    first = next(rows)
    return list(first), (tuple(row.values()) for row in chain([first], rows))
