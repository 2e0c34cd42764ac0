"""The files of an exported delta: what PEFT reads, and the head beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from continual.backbones.hub import Pooling
from continual.deltas import Head
from continual.deltas.peft_format import PeftAdapter
from continual.errors import ExchangeError

ADAPTER, CONFIG, PICKLE = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
HEAD, ABOUT_HEAD = "head.safetensors", "head.json"


class ExportOrigin(BaseModel):
    """Where an adapter was exported: its backbone's fingerprint, the delta's name and digest, and what it answers."""

    model_config = ConfigDict(frozen=True)

    backbone: str
    delta: str
    digest: str
    kind: dict[str, Any] = {}


class HeadMetadata(BaseModel):
    """`head.json`: labels by index, and how the vector that the head acts on is made; layer −1 is the last."""

    model_config = ConfigDict(frozen=True)

    labels: tuple[str, ...]
    pooling: Pooling
    layer: Literal[-1] = -1


def create_empty_folder(folder: Path) -> Path:
    """The folder, made where it is not there. Raises ExchangeError unless it is empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise ExchangeError(f"{folder} cannot be written to ({error}); give a new folder") from error
    if not empty:
        raise ExchangeError(f"{folder} is not empty, and old files among new ones could be read; give a new folder")
    return folder


def write_adapter(folder: Path, adapter: PeftAdapter, origin: ExportOrigin) -> None:
    """The two files that PEFT reads; `origin` goes into the metadata of the tensors, which PEFT ignores."""
    _write_json(folder / CONFIG, adapter.config)
    metadata = {"continual": origin.model_dump_json()}  # one key only: the order of several is one of chance
    save_file({name: tensor.contiguous() for name, tensor in adapter.tensors.items()}, folder / ADAPTER, metadata)


def read_adapter(folder: Path) -> tuple[PeftAdapter, ExportOrigin | None]:
    """What PEFT wrote, or `write_adapter`; the origin where it says one.

    Raises ExchangeError for files that are missing or damaged, and for pickled tensors.
    """
    if not (folder / ADAPTER).exists() and (folder / PICKLE).exists():
        raise ExchangeError(
            f"{folder / PICKLE} is a pickle, which can run any code when it is read; "
            f"save the adapter as {ADAPTER} where you trust it (PEFT: save_pretrained(…, safe_serialization=True))"
        )
    config = _read_json(folder / CONFIG)
    tensors, metadata = _read_tensors(folder / ADAPTER)
    try:
        origin = ExportOrigin.model_validate_json(metadata["continual"]) if "continual" in metadata else None
    except ValidationError as error:
        raise _damaged(folder / ADAPTER, error) from error
    return PeftAdapter(config, tensors), origin


def write_head(folder: Path, head: Head) -> None:
    """Weight and bias that act on the raw pooled vector, and what they mean."""
    save_file({"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}, folder / HEAD)
    _write_json(folder / ABOUT_HEAD, HeadMetadata(labels=head.labels, pooling=head.pooling).model_dump(mode="json"))


def read_head(folder: Path, *, hidden_size: int) -> Head | None:
    """The head of a folder; None where there are no files of one.

    Raises ExchangeError for one that is damaged, or of other sizes than its labels and `hidden_size` say.
    """
    if not (folder / HEAD).exists() and not (folder / ABOUT_HEAD).exists():
        return None
    tensors, _ = _read_tensors(folder / HEAD)
    try:
        about = HeadMetadata.model_validate(_read_json(folder / ABOUT_HEAD))
    except ValidationError as error:
        raise _damaged(folder / ABOUT_HEAD, error) from error
    classes = len(about.labels)
    wanted = {"weight": (classes, hidden_size), "bias": (classes,)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted or len(set(about.labels)) != classes:
        raise ExchangeError(
            f"{folder / HEAD} holds {found}; a head of the {classes} labels {list(about.labels)}, each once, on this "
            f"backbone is {wanted}"
        )
    return Head(tensors["weight"].float(), tensors["bias"].float(), about.labels, about.pooling)


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
            metadata: Mapping[str, str] = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error
    if bad := [name for name, tensor in tensors.items() if not (tensor.is_floating_point() and _finite(tensor))]:
        raise ExchangeError(f"{file} holds what are no finite numbers: {', '.join(bad)}; export it again")
    return tensors, metadata


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float()).all())


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if not isinstance(content, dict):
        raise _damaged(file, "it holds no JSON object")
    return content


def _damaged(file: Path, reason: Exception | str) -> ExchangeError:
    return ExchangeError(f"{file} cannot be read: {str(reason).strip()}; give the folder that the export wrote")
