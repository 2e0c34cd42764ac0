"""A stream before it is learned: all that can be checked is checked, and that it begins is written down."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from continual.backbones.backbone import Backbone
from continual.deltas import iterate_edits
from continual.errors import BackboneError, MethodError
from continual.features.tokens import reserve_tokens
from continual.kinds import kind_of_spec
from continual.learning.record import backbone_record, task_record
from continual.training.method_search import candidate_settings, search_candidates, search_settings
from registry import Registry, UnitOfWork
from tasks import Stream, TaskData, TaskSpec, load_stream
from tasks.errors import InputError


def require_trainable(backbone: Backbone) -> None:
    """Raises BackboneError for a backbone that answers, and that nothing is learned on."""
    if backbone.split:
        raise BackboneError(
            f"backbone {backbone.name!r} is split over devices, where it answers and learns nothing; learn on one "
            "device, with --bits 8 or 4 if it is too large: what is learned in float32 answers split too"
        )


def load_and_check(
    backbone: Backbone, registry: Registry, stream: Stream, *, alone: bool = False
) -> tuple[TaskData, ...]:
    """Load the rows of every task and check all that can be checked before training; nothing is written.

    A task that was purged since the stream learned it is left out: its rows may be gone as well.
    alone: the stream is a lone task, which no stream of its name has to do with.

    Raises InputError, one message with what is to be mended in all of the tasks: files, columns, labels, methods,
    warm starts, sites that the backbone lacks, and tasks that the registry knows with other labels.
    """
    positions = () if alone else registry.positions(stream.name)
    purged, learned = ({p.task for p in positions if p.delta and p.purged == gone} for gone in (True, False))
    kept = stream.model_copy(update={"tasks": tuple(task for task in stream.tasks if task.name not in purged)})
    problems: list[InputError] = [
        MethodError(problem) for spec in kept.resolved() for problem in incompatibilities(backbone, spec)
    ]
    loaded: tuple[TaskData, ...] = ()
    try:
        loaded = load_stream(kept)
        registry.check_tasks_unchanged(task_record(data) for data in loaded if data.spec.name not in learned)
        if not alone:
            registry.check_stream_unchanged(stream.name, _entries(stream, loaded))
    except InputError as error:
        problems.append(error)
    raise_problems(problems)
    return loaded


def raise_problems(problems: Sequence[InputError]) -> None:
    """Raises the problem, where there is one, and of several one InputError that says all."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise InputError("\n".join(map(str, problems)))


def incompatibilities(backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
    """What of a task's kind and method is not offered on this backbone."""
    try:
        assert spec.method  # what `Stream.resolved` fills in
        assert spec.budget
        kind = kind_of_spec(spec)
        fitting = reserve_tokens(replace(backbone, edits_decoder=kind.generates), *candidate_settings(spec.method))
        yield from (f"task {spec.name!r}: {misfit}" for misfit in kind.incompatibilities(fitting, spec))
        for settings in candidate_settings(spec.method):
            list(iterate_edits(fitting, settings))  # looks for every site
        if search := search_settings(spec.method):
            search_candidates(fitting, search, spec.budget)
    except InputError as error:
        yield f"task {spec.name!r}: {error}"


def register_stream(backbone: Backbone, registry: Registry, stream: Stream, loaded: Sequence[TaskData]) -> None:
    """Write down that a stream begins, or that it goes on. Raises StreamChanged where it was begun otherwise."""

    def work(unit: UnitOfWork) -> None:
        unit.add_backbone(backbone_record(backbone))
        unit.begin_stream(
            stream.name,
            backbone=backbone.fingerprint,
            spec=stream.model_dump(mode="json"),
            entries=_entries(stream, loaded),
        )

    registry.write_with_retry(work)


def _entries(stream: Stream, loaded: Sequence[TaskData]) -> list[tuple[str, str]]:
    """What the registry knows a stream's positions by; of a task that was purged nothing but its name."""
    recipes = {data.spec.name: recipe_digest(data) for data in loaded}
    return [(task.name, recipes.get(task.name, "")) for task in stream.tasks]


def recipe_digest(data: TaskData) -> str:
    """Digest of all that decides what is learned from a task: its spec, its rows, the seed.

    Left out are where the rows lie, how many tasks may be trained beside it, and how memory is saved.
    """
    spec = data.spec.model_dump(mode="json", exclude={"source"})
    for key in ("joint", "checkpointing"):
        (spec["budget"] or {}).pop(key, None)
    said = [spec, task_record(data).fingerprints, data.seed]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
