"""Export: a registered delta as a folder that others load without this package."""

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
from continual.kinds.regression import Regression
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
    backbone: Backbone, registry: Registry, name: str, *, folder: Path, form: str = "peft"
) -> tuple[str, ...]:
    """Write a delta, such as `sst2@1`, to an empty or new folder; the names of its files.

    `peft`: what PEFT loads onto the plain backbone · `transformers`: the backbone with the change in its weights.
    Both with `head.safetensors` and `head.json`, where the delta has a head; a regression's answers in its own units.

    Raises NotFound for the delta, DeltaError where it is of another backbone, ExchangeError where the format cannot say
    what it does, or for a folder that is not empty.
    """
    if form not in FORMATS:
        raise ExchangeError(f"format {form!r} is not known; allowed: {', '.join(FORMATS)}")
    stored = registry.delta(name)
    delta = load_delta(registry.blobs.get(stored.values))
    kind = kind_of_delta(delta)
    origin = ExportOrigin(backbone=delta.backbone, delta=name, digest=stored.values, kind=dict(delta.kind))
    FORMATS[form](backbone_for(backbone, kind), delta, folder, origin)
    if delta.head:
        write_head(folder, kind.to_task_units(delta.head) if isinstance(kind, Regression) else delta.head)
    return tuple(sorted(file.name for file in folder.iterdir()))
