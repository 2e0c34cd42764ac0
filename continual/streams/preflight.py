"""Check a stream before anything is learned, and register that it begins."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from continual.backbones.backbone import Backbone
from continual.deltas import iterate_edits
from continual.errors import BackboneError, MethodError
from continual.features.tokens import reserve_tokens
from continual.kinds import kind_of_spec
from continual.learning.prepared import prepare_task
from continual.learning.readout import readout_obstacle
from continual.learning.record import backbone_record, data_record, task_record
from continual.metrics import label_obstacle
from continual.training.method_search import candidate_settings, search_candidates, search_settings
from registry import DataRecord, Registry, UnitOfWork
from tasks import Stream, TaskData, TaskSpec, load_stream
from tasks.data_quality import require_no_warnings
from tasks.errors import InputError
from tasks.recipe import recipe_settings


def require_trainable(backbone: Backbone) -> None:
    """Raise an error for a backbone that can only be used for inference.

    Raises:
        BackboneError: The backbone is split over several devices.
    """
    if backbone.split:
        raise BackboneError(
            f"backbone {backbone.name!r} is split over devices, where it answers and learns nothing; learn on one "
            "device, with --bits 8 or 4 if it is too large: what is learned in float32 answers split too"
        )


def load_and_check(
    backbone: Backbone, registry: Registry, stream: Stream, *, alone: bool = False
) -> tuple[TaskData, ...]:
    """Load the rows of every task and make all checks that need no training; nothing is written.

    A task that was purged after the stream learned it is left out: its rows may be deleted as well.

    Args:
        backbone: The frozen backbone.
        registry: The registry.
        stream: The stream.
        alone: The stream is a single task outside any stored stream, so that it is not compared with one of its name.

    Raises:
        InputError: One message names all that is to be corrected in all tasks: files, columns, labels, methods, warm
            starts, sites that the backbone lacks, and tasks that the registry has with other labels.
        StoreMismatch: The registry's blob store belongs to another registry.
    """
    registry.require_own_store()
    positions = () if alone else registry.positions(stream.name)
    purged, learned = (
        {position.task for position in positions if position.delta and position.purged == is_purged}
        for is_purged in (True, False)
    )
    remaining = stream.model_copy(update={"tasks": tuple(task for task in stream.tasks if task.name not in purged)})
    problems: list[InputError] = [
        MethodError(problem) for spec in remaining.resolved() for problem in incompatibilities(backbone, spec)
    ]
    loaded: tuple[TaskData, ...] = ()
    try:
        loaded = load_stream(remaining)
        problems += [InputError(problem) for data in loaded for problem in label_obstacles(data)]
        if not problems:
            problems += [error for data in loaded if data.spec.strict for error in _truncation_errors(backbone, data)]
        registry.check_tasks_unchanged(task_record(data) for data in loaded if data.spec.name not in learned)
        if not alone:
            registry.check_stream_unchanged(stream.name, _stream_entries(stream, loaded), _data_records(loaded))
    except InputError as error:
        problems.append(error)
    raise_problems(problems)
    return loaded


def raise_problems(problems: Sequence[InputError]) -> None:
    """Raise the only problem as it is, or one error with the messages of several; do nothing without any.

    Raises:
        InputError: There is a problem.
    """
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise InputError("\n".join(map(str, problems)))


def incompatibilities(backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
    """Yield one message per reason why this backbone cannot learn the task."""
    try:
        assert spec.method  # what `Stream.resolved` fills in
        assert spec.budget
        kind = kind_of_spec(spec)
        prepared_backbone = reserve_tokens(
            replace(backbone, generates=kind.generates), *candidate_settings(spec.method)
        )
        yield from (f"task {spec.name!r}: {problem}" for problem in kind.incompatibilities(prepared_backbone, spec))
        for settings in candidate_settings(spec.method):
            # Resolves every site, and raises for one that the backbone lacks.
            list(iterate_edits(prepared_backbone, settings))
        if obstacle := readout_obstacle(prepared_backbone, spec):
            yield f"task {spec.name!r}: {obstacle}"
        if search := search_settings(spec.method):
            search_candidates(prepared_backbone, search, spec.budget)
    except InputError as error:
        yield f"task {spec.name!r}: {error}"


def label_obstacles(data: TaskData) -> Iterator[str]:
    """Yield a message where the task's metric is not defined for its labels."""
    if problem := label_obstacle(data.spec.metric, data.labels, kind=data.spec.kind):
        yield f"task {data.spec.name!r}: {problem}"


def _truncation_errors(backbone: Backbone, data: TaskData) -> Iterator[InputError]:
    """Yield the error of a strict task whose texts are truncated, which only the tokenizer can tell."""
    try:
        require_no_warnings(prepare_task(backbone, data).with_truncation_warning().data)
    except InputError as error:
        yield error


def register_stream(backbone: Backbone, registry: Registry, stream: Stream, loaded: Sequence[TaskData]) -> None:
    """Register that a stream begins or continues on a backbone.

    Raises:
        StreamChanged: The stream was begun with other tasks or settings.
    """

    def write(unit: UnitOfWork) -> None:
        unit.add_backbone(backbone_record(backbone))
        unit.begin_stream(
            stream.name,
            backbone=backbone.fingerprint,
            spec=stream.model_dump(mode="json"),
            entries=_stream_entries(stream, loaded),
            data=_data_records(loaded),
        )
        unit.set_route({data.spec.name: data.spec.route for data in loaded})

    registry.write_with_retry(write)


def _stream_entries(stream: Stream, loaded: Sequence[TaskData]) -> list[tuple[str, str]]:
    """Return the task name and recipe digest of every position; an empty digest for a purged task."""
    digests = {data.spec.name: recipe_digest(data) for data in loaded}
    return [(task.name, digests.get(task.name, "")) for task in stream.tasks]


def _data_records(loaded: Sequence[TaskData]) -> dict[str, DataRecord]:
    return {data.spec.name: data_record(data) for data in loaded}


def recipe_digest(data: TaskData) -> str:
    """Compute a digest of all that determines what is learned from a task: its settings, its rows, the seed.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    task = task_record(data)
    recipe = [recipe_settings(task.spec), task.fingerprints, data.seed]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
