"""Export a registered delta to a folder that PEFT or transformers load without this package."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE
from typing import Any

from continual.backbones.backbone import Backbone
from continual.backbones.hub import silence_transformers
from continual.deltas import Delta, Head, load_delta
from continual.errors import ExchangeError
from continual.exchange.files import ExportOrigin, create_empty_folder, write_adapter, write_head
from continual.exchange.merging import merge_into_model
from continual.exchange.model_card import CARD, CHAT_TEMPLATE, Usage, chat_template, write_model_card
from continual.exchange.peft import to_peft
from continual.exchange.sequence_classifier import build_classifier, classifier_obstacle
from continual.kinds import Kind, backbone_for, kind_of_delta
from continual.kinds.kind import PooledKind
from continual.kinds.regression import Regression
from registry import Registry


@dataclass(frozen=True)
class _Export:
    """A delta that is written.

    Attributes:
        backbone: Its backbone, as its kind needs it.
        delta: The delta.
        kind: Its kind.
        head: Its head, which answers in the task's units.
        origin: Where it comes from.
        max_length: Largest number of a text's tokens.
    """

    backbone: Backbone
    delta: Delta
    kind: Kind[Any]
    head: Head | None
    origin: ExportOrigin
    max_length: int


@dataclass(frozen=True)
class _Written:
    """What was written: how it is loaded, and the head as it acts on the states of what is loaded."""

    usage: Usage
    head: Head | None


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
    tokenizer = deepcopy(backbone.tokenizer)
    tokenizer.model_max_length = min(export.max_length, backbone.longest_input)
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


FORMATS: Mapping[str, Callable[[_Export, Path], _Written]] = {
    "peft": _write_peft,
    "transformers": _write_transformers,
}


def export_delta(
    backbone: Backbone, registry: Registry, name: str, *, folder: Path, file_format: str = "peft"
) -> tuple[str, ...]:
    """Write a delta to a folder, and return the names of the files.

    A delta with a head also gets `head.safetensors` and `head.json`; a regression's head answers in the task's units.
    One that reads a chat template gets `chat_template.jinja`, as it was when the delta was learned. A model card,
    `README.md`, says how the folder is loaded.

    Args:
        backbone: The delta's backbone.
        registry: Where the delta is registered.
        name: The delta, such as `sst2@1`.
        folder: a new or empty folder.
        file_format: `peft` for an adapter that PEFT loads onto the plain backbone; `transformers` for a whole model
            with the change merged into its weights, a sequence classifier where one computes the head's outputs.

    Raises:
        NotFound: The delta is not registered.
        DeltaError: The delta is another backbone's.
        ExchangeError: The format is not known or cannot express the delta, or the folder is not empty.
    """
    if file_format not in FORMATS:
        raise ExchangeError(f"format {file_format!r} is not known; allowed: {', '.join(FORMATS)}")
    stored = registry.delta(name)
    delta = load_delta(registry.blobs.get(stored.values))
    kind = kind_of_delta(delta)
    export = _Export(
        backbone_for(backbone, kind),
        delta,
        kind,
        kind.to_task_units(delta.head) if delta.head else None,
        ExportOrigin(backbone=delta.backbone, delta=name, digest=stored.values, kind=dict(delta.kind)),
        stored.budget["max_length"],
    )
    written = FORMATS[file_format](export, folder)
    if written.head:
        write_head(folder, written.head)
    if template := chat_template(kind):
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    write_model_card(folder, registry, name, backbone=backbone, kind=kind, head=written.head, usage=written.usage)
    mode = S_IMODE((folder / CARD).stat().st_mode)
    for file in folder.iterdir():
        file.chmod(mode)  # safetensors makes files that only their owner reads, whatever the umask
    return tuple(sorted(file.name for file in folder.iterdir()))
