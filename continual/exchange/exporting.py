"""Export a registered delta to a folder that PEFT, transformers or a serving engine load without this package."""

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from stat import S_IMODE
from typing import Any

from continual.backbones.backbone import Backbone
from continual.backbones.hub import silence_transformers
from continual.backbones.readout import keep_first_layers
from continual.deltas import Delta, Head, load_delta
from continual.errors import ExchangeError
from continual.exchange.engine_adapter import EngineAdapter, to_engine_adapter
from continual.exchange.files import ExportOrigin, create_empty_folder, write_adapter, write_head
from continual.exchange.merging import merge_into_model
from continual.exchange.model_card import CARD, CHAT_TEMPLATE, Usage, chat_template, write_model_card
from continual.exchange.peft import base_source, to_peft
from continual.exchange.saved_heads import MODEL_CONFIG
from continual.exchange.sequence_classifier import build_classifier, classifier_obstacle
from continual.exchange.serving_engines import SERVING_ENGINES, ServedAdapter, ServingEngine
from continual.kinds import Kind, backbone_for, kind_of_delta
from continual.kinds.pooled_kind import PooledKind
from continual.kinds.regression import Regression
from registry import Registry, StoredDelta


@dataclass(frozen=True)
class _Export:
    """A delta that is written.

    Attributes:
        stored: What the registry holds of it.
        backbone: Its backbone, as its kind needs it.
        delta: The delta.
        kind: Its kind.
        head: Its head, which answers in the task's units.
        rank: Largest rank of an adapter for an engine; None for that of `to_low_rank`.
        measured: Whether an approximation for an engine is scored.
    """

    stored: StoredDelta
    backbone: Backbone
    delta: Delta
    kind: Kind[Any]
    head: Head | None
    rank: int | None
    measured: bool

    @property
    def origin(self) -> ExportOrigin:
        """Where it comes from."""
        return ExportOrigin(
            backbone=self.delta.backbone,
            delta=self.stored.name,
            digest=self.stored.values,
            kind=dict(self.delta.kind),
        )


@dataclass(frozen=True)
class _Written:
    """What was written: how it is loaded, and the head as it acts on the states of what is loaded."""

    usage: Usage
    head: Head | None


@dataclass(frozen=True)
class ExportedDelta:
    """An exported folder.

    Attributes:
        delta: Name of the delta.
        folder: The folder.
        files: Names of its files.
        engine_adapter: What was converted for a serving engine; None for the other formats.
    """

    delta: str
    folder: Path
    files: tuple[str, ...]
    engine_adapter: EngineAdapter | None


def _write_peft(export: _Export, folder: Path) -> _Written:
    adapter = to_peft(export.backbone, export.delta)
    write_adapter(create_empty_folder(folder), adapter, export.origin)
    return _Written(Usage(is_adapter=True), export.head)


def _write_transformers(export: _Export, folder: Path) -> _Written:
    backbone, head = export.backbone, export.head
    model = merge_into_model(backbone, export.delta)
    obstacle = _pipeline_obstacle(export)
    if head and not obstacle:
        problem = "regression" if isinstance(export.kind, Regression) else "single_label_classification"
        model, head = build_classifier(model.base_model, backbone.family, head, problem_type=problem)
    if head and head.layers is not None:
        keep_first_layers(model, backbone.family.stack, head.layers)
        head = replace(head, layers=None)
    tokenizer = deepcopy(backbone.tokenizer)
    tokenizer.model_max_length = min(export.stored.budget["max_length"], backbone.longest_input)
    if "embed.type" not in backbone.family.stack.sites:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    with silence_transformers():
        model.save_pretrained(create_empty_folder(folder))
    tokenizer.save_pretrained(folder)
    layers = backbone.num_layers if model.config.num_hidden_layers > backbone.num_layers else None
    return _Written(Usage(is_pipeline=not obstacle, layers=layers, obstacle=obstacle), head)


def _pipeline_obstacle(export: _Export) -> str | None:
    if export.head and not isinstance(export.kind, PooledKind):
        return "its head answers for each token"
    return classifier_obstacle(export.backbone.family, export.head)


def _write_for_engine(engine: ServingEngine, export: _Export, folder: Path) -> _Written:
    converted = to_engine_adapter(
        export.backbone,
        export.stored,
        export.delta,
        kind=export.kind,
        engine=engine,
        rank=export.rank,
        measured=export.measured,
    )
    write_adapter(create_empty_folder(folder), converted.adapter, export.origin)
    if converted.labels:
        names = {"id2label": dict(enumerate(converted.labels))}
        (folder / MODEL_CONFIG).write_text(json.dumps(names, ensure_ascii=False) + "\n", encoding="utf-8")
    served = ServedAdapter(export.stored.task, Path("DIR"), converted.rank, converted.outputs)
    command = engine.command(base_source(export.backbone), [served])
    return _Written(Usage(is_adapter=True, engine=engine.title, command=command, adapter=converted), None)


FORMATS: Mapping[str, Callable[[_Export, Path], _Written]] = {
    "peft": _write_peft,
    "transformers": _write_transformers,
    **{name: partial(_write_for_engine, engine) for name, engine in SERVING_ENGINES.items()},
}


def export_delta(
    backbone: Backbone,
    registry: Registry,
    name: str,
    *,
    folder: Path,
    file_format: str = "peft",
    rank: int | None = None,
    measured: bool = True,
) -> ExportedDelta:
    """Write a delta to a folder.

    A delta with a head also gets `head.safetensors` and `head.json`, but for an engine, which takes it with the
    adapter; a regression's head answers in the task's units. One that reads a chat template gets
    `chat_template.jinja`, as it was when the delta was learned. A model card, `README.md`, says how the folder is
    loaded.

    Args:
        backbone: The delta's backbone.
        registry: Where the delta is registered.
        name: The delta, such as `sst2@1`.
        folder: a new or empty folder.
        file_format: `peft` for an adapter that PEFT loads onto the plain backbone; `transformers` for a whole model
            with the change merged into its weights, a sequence classifier where one computes the head's outputs; the
            name of a serving engine for LoRA as the engine loads it.
        rank: Largest rank of LoRA for an engine, as in `continual.exchange.low_rank.to_low_rank`.
        measured: Whether an approximation for an engine is scored on the task's test rows, where these can be read.

    Raises:
        NotFound: The delta is not registered.
        DeltaError: The delta is another backbone's.
        ExchangeError: The format is not known or cannot express the delta, or the folder is not empty.
    """
    if file_format not in FORMATS:
        raise ExchangeError(f"format {file_format!r} is not known; allowed: {', '.join(FORMATS)}")
    if rank is not None and file_format not in SERVING_ENGINES:
        raise ExchangeError(
            f"format {file_format!r} has no rank to choose; leave it out, or use {', '.join(SERVING_ENGINES)}"
        )
    stored = registry.delta(name)
    delta = load_delta(registry.blobs.get(stored.values))
    kind = kind_of_delta(delta)
    head = kind.to_task_units(delta.head) if delta.head else None
    export = _Export(stored, backbone_for(backbone, kind), delta, kind, head, rank, measured)
    written = FORMATS[file_format](export, folder)
    if written.head:
        write_head(folder, written.head)
    if template := chat_template(kind):
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    write_model_card(folder, registry, name, backbone=backbone, kind=kind, head=written.head, usage=written.usage)
    mode = S_IMODE((folder / CARD).stat().st_mode)
    for file in folder.iterdir():
        file.chmod(mode)  # safetensors makes files that only their owner reads, whatever the umask
    files = tuple(sorted(file.name for file in folder.iterdir()))
    return ExportedDelta(name, folder, files, written.usage.adapter)


def commands_by_delta(backbone: Backbone, file_format: str, exported: Sequence[ExportedDelta]) -> dict[str, str]:
    """Return by delta the command that serves it, with the others of its kind of answer; empty without an engine.

    Args:
        backbone: The backbone of all deltas.
        file_format: The format that they were exported in.
        exported: The exported deltas.
    """
    if file_format not in SERVING_ENGINES:
        return {}
    groups: dict[int | None, dict[str, ServedAdapter]] = {}
    for export in exported:
        assert export.engine_adapter is not None
        task, outputs = export.delta.rpartition("@")[0], export.engine_adapter.outputs
        adapter = ServedAdapter(task, export.folder, export.engine_adapter.rank, outputs)
        groups.setdefault(outputs, {})[export.delta] = adapter
    engine, base = SERVING_ENGINES[file_format], base_source(backbone)
    return {delta: engine.command(base, [*group.values()]) for group in groups.values() for delta in group}
