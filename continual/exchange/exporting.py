"""Export a registered delta to a folder that PEFT or transformers load without this package."""

from collections.abc import Callable, Mapping
from pathlib import Path

from continual.backbones.backbone import Backbone
from continual.backbones.hub import silence_transformers
from continual.deltas import Delta, load_delta
from continual.errors import ExchangeError
from continual.exchange.files import ExportOrigin, create_empty_folder, write_adapter, write_head
from continual.exchange.merging import merge_into_model
from continual.exchange.peft import to_peft
from continual.kinds import backbone_for, kind_of_delta
from registry import Registry


def _write_peft(backbone: Backbone, delta: Delta, folder: Path, origin: ExportOrigin) -> None:
    adapter = to_peft(backbone, delta)
    write_adapter(create_empty_folder(folder), adapter, origin)


def _write_transformers(backbone: Backbone, delta: Delta, folder: Path, origin: ExportOrigin) -> None:
    model = merge_into_model(backbone, delta)
    with silence_transformers():
        model.save_pretrained(create_empty_folder(folder))
    backbone.tokenizer.save_pretrained(folder)


FORMATS: Mapping[str, Callable[[Backbone, Delta, Path, ExportOrigin], None]] = {
    "peft": _write_peft,
    "transformers": _write_transformers,
}


def export_delta(
    backbone: Backbone, registry: Registry, name: str, *, folder: Path, file_format: str = "peft"
) -> tuple[str, ...]:
    """Write a delta to a folder, and return the names of the files.

    A delta with a head also gets `head.safetensors` and `head.json`; a regression's head answers in the task's units.

    Args:
        backbone: The delta's backbone.
        registry: Where the delta is registered.
        name: The delta, such as `sst2@1`.
        folder: a new or empty folder.
        file_format: `peft` for an adapter that PEFT loads onto the plain backbone; `transformers` for a whole model
            with the change merged into its weights.

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
    origin = ExportOrigin(backbone=delta.backbone, delta=name, digest=stored.values, kind=dict(delta.kind))
    FORMATS[file_format](backbone_for(backbone, kind), delta, folder, origin)
    if delta.head:
        write_head(folder, kind.to_task_units(delta.head))
    return tuple(sorted(file.name for file in folder.iterdir()))
