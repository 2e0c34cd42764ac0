"""Files of an exported delta: the two of a PEFT adapter, and the two of its head."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from continual.backbones.hub import Pooling
from continual.deltas import Head
from continual.deltas.peft_format import PeftAdapter
from continual.errors import ExchangeError
from tasks.regular_file import regular_size

MAX_SIZE = 1_000_000  # of a rank, of a length in tokens, and of the numerator of a scale
MAX_JSON_BYTES = 16 * 2**20
# Deltas are stored in float16. A head may answer in any units, so its numbers may be larger.
MAX_ADAPTER_VALUE, MAX_HEAD_VALUE = 65504.0, 1e18
Rank = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Alpha = Annotated[float, Field(ge=-MAX_SIZE, le=MAX_SIZE, allow_inf_nan=False)]
ADAPTER, CONFIG, PICKLE = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
HEAD, HEAD_METADATA = "head.safetensors", "head.json"


class ExportOrigin(BaseModel):
    """Origin of an exported adapter, stored in the metadata of its tensors.

    Attributes:
        backbone: Fingerprint of the backbone.
        delta: Name of the delta, such as `sst2@1`.
        digest: Digest of the delta's blob.
        kind: The kind of task, as `Delta.kind`.
    """

    model_config = ConfigDict(frozen=True)

    backbone: str
    delta: str
    digest: str
    kind: dict[str, Any] = {}


class AdapterConfig(BaseModel):
    """The types and ranges of what is read of `adapter_config.json`; other keys may be anything.

    Attributes:
        peft_type: PEFT's name of the method.
        r: Rank of LoRA and of others; of OFT the number of blocks, or 0.
        oft_block_size: Size of OFT's blocks, or 0.
        lora_alpha: Numerator of LoRA's scale.
        rank_pattern: Ranks by pattern of module names; of AdaLoRA which of a module's ranks are kept.
        alpha_pattern: Numerators by pattern of module names.
        target_modules: Names or a regular expression of the changed modules.
        exclude_modules: Names or a regular expression of modules that are left as they are.
        modules_to_save: Modules that are saved whole.
        layers_to_transform: Numbers of the changed layers.
        layers_pattern: Names of the list of layers.
        num_virtual_tokens: Length of a prompt or a prefix.
        base_model_name_or_path: The base model.
        revision: Its revision.
    """

    peft_type: str | None = None
    r: Size | None = None
    oft_block_size: Size | None = None
    lora_alpha: Alpha | None = None
    rank_pattern: dict[str, Rank | list[bool]] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    num_virtual_tokens: Annotated[int, Field(ge=1, le=MAX_SIZE)] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _sizes_are_given(self) -> Self:
        needed = {"LORA": ("r", "lora_alpha"), "PROMPT_TUNING": ("num_virtual_tokens",)}
        needed["PREFIX_TUNING"] = needed["PROMPT_TUNING"]
        if missing := [key for key in needed.get(self.peft_type or "", ()) if getattr(self, key) is None]:
            raise ValueError(f"{' and '.join(missing)} of {self.peft_type} missing")
        if self.r == 0 and not self.oft_block_size:
            raise ValueError("r is 0, which is allowed beside an oft_block_size only")
        return self


class HeadMetadata(BaseModel):
    """Content of `head.json`.

    Attributes:
        labels: Names of the head's outputs, by index.
        pooling: Pooling of the layer's states into the vector that the head acts on.
        layer: The layer, counted from 0, whose states are read behind the model's last norm, as if there were none
            above it; −1 is the last.
    """

    model_config = ConfigDict(frozen=True)

    labels: tuple[str, ...]
    pooling: Pooling
    layer: int = Field(default=-1, ge=-1)

    @classmethod
    def of(cls, head: Head) -> Self:
        """Return the metadata of a head."""
        return cls(labels=head.labels, pooling=head.pooling, layer=-1 if head.layers is None else head.layers - 1)

    @property
    def layers(self) -> int | None:
        """How many layers compute the states; None for all."""
        return None if self.layer == -1 else self.layer + 1


def create_empty_folder(folder: Path) -> Path:
    """Create a folder if it does not exist, and return it.

    Raises:
        ExchangeError: The folder is not empty, or cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise ExchangeError(f"{folder} cannot be written to ({error}); give a new folder") from error
    if not empty:
        raise ExchangeError(f"{folder} is not empty, and old files among new ones could be read; give a new folder")
    return folder


def write_adapter(folder: Path, adapter: PeftAdapter, origin: ExportOrigin) -> None:
    """Write the two files of a PEFT adapter; `origin` goes into the tensors' metadata, which PEFT ignores."""
    _write_json(folder / CONFIG, adapter.config)
    metadata = {"continual": origin.model_dump_json()}  # one key only: the order of several keys is random
    save_file({name: tensor.contiguous() for name, tensor in adapter.tensors.items()}, folder / ADAPTER, metadata)


def read_adapter(folder: Path) -> tuple[PeftAdapter, ExportOrigin | None]:
    """Read an adapter that PEFT or `write_adapter` wrote.

    Returns:
        The adapter, and its origin; None where the metadata have none.

    Raises:
        ExchangeError: Files are missing or damaged, or the tensors are pickled.
    """
    if not (folder / ADAPTER).exists() and (folder / PICKLE).exists():
        raise ExchangeError(
            f"{folder / PICKLE} is a pickle, which can run any code when it is read; "
            f"save the adapter as {ADAPTER} where you trust it (PEFT: save_pretrained(…, safe_serialization=True))"
        )
    config = read_json(folder / CONFIG)
    try:
        AdapterConfig.model_validate(config)
    except ValidationError as error:
        raise _unreadable(folder / CONFIG, _summary(error)) from error
    tensors, metadata = _read_tensors(folder / ADAPTER, largest=MAX_ADAPTER_VALUE)
    try:
        origin = ExportOrigin.model_validate_json(metadata["continual"]) if "continual" in metadata else None
    except ValidationError as error:
        raise _unreadable(folder / ADAPTER, error) from error
    return PeftAdapter(config, tensors), origin


def write_head(folder: Path, head: Head) -> None:
    """Write a head that acts on the raw pooled vector: weight [C, D] and bias [C], and their metadata."""
    save_file({"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}, folder / HEAD)
    _write_json(folder / HEAD_METADATA, HeadMetadata.of(head).model_dump(mode="json"))


def read_head(folder: Path, *, hidden_size: int) -> Head | None:
    """Read a head, weight [C, D] and bias [C] in float32; None where the folder has no files of a head.

    Args:
        folder: The folder.
        hidden_size: D, the width of the backbone's states.

    Raises:
        ExchangeError: a file is damaged, or the shapes do not follow from the labels and `hidden_size`.
    """
    if not (folder / HEAD).exists() and not (folder / HEAD_METADATA).exists():
        return None
    tensors, _ = _read_tensors(folder / HEAD, largest=MAX_HEAD_VALUE)
    try:
        metadata = HeadMetadata.model_validate(read_json(folder / HEAD_METADATA))
    except ValidationError as error:
        raise _unreadable(folder / HEAD_METADATA, error) from error
    classes = len(metadata.labels)
    expected = {"weight": (classes, hidden_size), "bias": (classes,)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != expected or len(set(metadata.labels)) != classes:
        raise ExchangeError(
            f"{folder / HEAD} holds {shapes}; a head of the {classes} labels {list(metadata.labels)}, each once, on "
            f"this backbone is {expected}"
        )
    weight, bias = tensors["weight"].float(), tensors["bias"].float()
    return Head(weight, bias, metadata.labels, metadata.pooling, metadata.layers)


def _summary(error: ValidationError) -> str:
    """Return the first problems, each with its key, in one line."""
    details = [f"{'.'.join(map(str, d['loc'])) or 'it'}: {d['msg']}" for d in error.errors(include_url=False)[:3]]
    return "; ".join(detail[:200] for detail in details)


def _read_tensors(file: Path, *, largest: float) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        regular_size(file)
        with safe_open(file, "pt") as reader:
            tensors = {name: reader.get_tensor(name) for name in sorted(reader.keys())}
            metadata: Mapping[str, str] = reader.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from error
    if bad := [name for name, tensor in tensors.items() if not (tensor.is_floating_point() and _is_finite(tensor))]:
        raise ExchangeError(f"{file} holds values that are not finite: {', '.join(bad)}; export it again")
    if bad := [name for name, tensor in tensors.items() if tensor.numel() and float(tensor.abs().max()) > largest]:
        raise ExchangeError(
            f"{file} holds values beyond ±{largest:g}, which no trained adapter has and which cannot be stored: "
            f"{', '.join(bad)}; train or export it again"
        )
    return tensors, metadata


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float()).all())


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        ExchangeError: The file is missing, too large, none that ends, or holds no JSON object.
    """
    try:
        if (size := regular_size(file)) > MAX_JSON_BYTES:
            raise _unreadable(file, f"it has {size:,} bytes, and at most {MAX_JSON_BYTES:,} are read")
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise _unreadable(file, "lists or objects are nested too deeply in it") from error
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    if not isinstance(content, dict):
        raise _unreadable(file, "it holds no JSON object")
    return content


def _unreadable(file: Path, reason: Exception | str) -> ExchangeError:
    return ExchangeError(f"{file} cannot be read: {str(reason).strip()}; give the folder that the export wrote")
