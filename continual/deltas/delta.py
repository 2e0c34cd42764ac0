"""What one task owns: the values of its edits, and its head."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from continual.backbone import Backbone, Pooling
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings
from continual.deltas.methods import METHODS
from continual.errors import DeltaError
from continual.families import Place

_METADATA = "continual"  # one key only: the order of several would not be the same in every process


@dataclass(frozen=True)
class Head:
    """A linear head on the pooled vector: logits [B, C] = pooled [B, D] Wᵀ + b.

    weight [C, D] · bias [C] · labels: the C labels by index · pooling: how the vector is pooled of the last layer.
    """

    weight: Tensor
    bias: Tensor
    labels: tuple[str, ...]
    pooling: Pooling

    def __call__(self, pooled: Tensor) -> Tensor:
        return torch.nn.functional.linear(pooled, self.weight, self.bias)


@dataclass(frozen=True)
class Delta:
    """The edits and the head of one task, for one backbone.

    values: learned tensors by `place/number of the edit/name`, e.g. `layer.0.attn.q/0/A`.
    """

    method: str
    settings: MethodSettings
    backbone: str
    values: Mapping[str, Tensor]
    head: Head

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the delta by its name in the file."""
        return {**self.values, "head/weight": self.head.weight, "head/bias": self.head.bias}

    @property
    def parameter_count(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors().values())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Delta":
        """The same delta with `change` applied to every tensor."""
        head = replace(self.head, weight=change(self.head.weight), bias=change(self.head.bias))
        return replace(self, values={key: change(value) for key, value in self.values.items()}, head=head)

    def trainable(self, device: torch.device) -> "Delta":
        """A copy on `device` whose tensors are leaves that take gradients."""
        return self.map(lambda tensor: tensor.detach().to(device, torch.float32, copy=True).requires_grad_())

    def frozen(self) -> "Delta":
        """A copy in memory of its own, without gradients, on the CPU."""
        return self.map(lambda tensor: tensor.detach().to("cpu", copy=True).contiguous())

    def to(self, device: torch.device) -> "Delta":
        return self.map(lambda tensor: tensor.to(device))

    def to_bytes(self) -> bytes:
        """The delta as a safetensors file; equal deltas give equal bytes."""
        about = {
            "method": self.method,
            "settings": self.settings.model_dump(mode="json"),
            "backbone": self.backbone,
            "labels": self.head.labels,
            "pooling": self.head.pooling,
        }
        metadata = {_METADATA: json.dumps(about, sort_keys=True)}
        return save_safetensors(self.frozen().tensors(), metadata=metadata)

    @property
    def digest(self) -> str:
        """SHA-256 of `to_bytes()`: the name under which the delta is stored."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def load_delta(data: bytes) -> Delta:
    """Read a delta back from `to_bytes()`.

    Raises DeltaError when the bytes are no delta, or of a method that this version does not know.
    """
    try:
        tensors = dict(sorted(load_safetensors(data).items()))  # safetensors gives them in an order of chance
        about = json.loads(_metadata(data)[_METADATA])
        pooling = TypeAdapter(Pooling).validate_python(about["pooling"])
        head = Head(tensors.pop("head/weight"), tensors.pop("head/bias"), tuple(about["labels"]), pooling)
        kind = METHODS.get(about["method"])
        if kind is None:
            raise DeltaError(f"the delta is of method {about['method']!r}; known: {', '.join(METHODS)}")
        return Delta(about["method"], kind.model_validate(about["settings"]), about["backbone"], tensors, head)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DeltaError(f"these {len(data)} bytes are not a stored delta ({reason}); restore the blob") from error


def _metadata(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length])["__metadata__"])


def steps(backbone: Backbone, settings: MethodSettings) -> Iterator[tuple[Place, str, Edit]]:
    """Every edit at every place it applies to, with the prefix of its values' names."""
    for number, edit in enumerate(settings.edits()):
        for place in backbone.places(edit.site):
            yield place, f"{place.name}/{number}", edit


def fresh_values(backbone: Backbone, settings: MethodSettings, *, seed: int) -> dict[str, Tensor]:
    """Values of a delta that has learned nothing yet."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for place, prefix, edit in steps(backbone, settings):
        d_read = place.d_in if edit.reads is Reads.INPUT else place.d_out
        for name, tensor in edit.form.start(d_read, place.d_out, generator).items():
            values[f"{prefix}/{name}"] = tensor
    return values
