"""What one task owns: the values of its edits, and its head."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from continual.backbones.hub import Pooling
from continual.deltas.method import METHODS, MethodSettings
from continual.deltas.protocols import HasFrozenValues
from continual.errors import DeltaError
from continual.serialization import deserialize, serialize

MAX_RELATIVE_ERROR = 2**-10  # of a tensor's norm; numbers that float16 has in full range lose at most half of it each


@dataclass(frozen=True)
class Head:
    """A linear head on the pooled vector, or on each token's state: outputs [..., C] = states [..., D] Wᵀ + b.

    weight [C, D] · bias [C] · labels: the names of the C outputs by index, of a classification its labels · pooling:
    how the vector is pooled of the last layer.
    """

    weight: Tensor
    bias: Tensor
    labels: tuple[str, ...]
    pooling: Pooling

    def __call__(self, states: Tensor) -> Tensor:
        return torch.nn.functional.linear(states, self.weight, self.bias)

    def select_labels(self, labels: Sequence[str]) -> "Head | None":
        """The outputs of these labels, of those that it has less their mean, 0 for others; None where it has no two."""
        places = [(i, self.labels.index(label)) for i, label in enumerate(labels) if label in self.labels]
        if len(places) < 2:
            return None
        to, own = ([pair[side] for pair in places] for side in (0, 1))

        def placed(tensor: Tensor) -> Tensor:
            found = tensor.new_zeros(len(labels), *tensor.shape[1:])
            found[to] = tensor[own] - tensor[own].mean(dim=0)
            return found

        return replace(self.map(placed), labels=tuple(labels))

    def reorder_labels(self, labels: Sequence[str]) -> "Head":
        """The same head with its outputs in the order of these labels, which are its own."""
        order = [self.labels.index(label) for label in labels]
        return replace(self.map(lambda tensor: tensor[order]), labels=tuple(labels))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Head":
        """The same head with `change` applied to weight and bias."""
        return replace(self, weight=change(self.weight), bias=change(self.bias))

    def to(self, device: torch.device) -> "Head":
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class Delta:
    """The edits and the head of one task, for one backbone.

    values: learned tensors by `place/number of the edit/name`, e.g. `layer.0.attn.q/0/A` · head: None where the
    language model itself answers · kind: what is answered, as `continual.kinds` writes and reads it; empty for a
    classification by the head.
    """

    method: str
    settings: MethodSettings
    backbone: str
    values: Mapping[str, Tensor]
    head: Head | None
    kind: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the delta by its name in the file."""
        head = {"head/weight": self.head.weight, "head/bias": self.head.bias} if self.head else {}
        return {**self.values, **head}

    def storage_tensors(self) -> dict[str, Tensor]:
        """The same as they are stored: values in float16 where that holds them to the bit, the head as it is."""
        return replace(self, values={key: pack_float16(value) for key, value in self.values.items()}).tensors()

    @property
    def size(self) -> int:
        """Bytes of all that is stored, without names and settings."""
        return sum(tensor.nbytes for tensor in self.storage_tensors().values())

    def quantise_to_float16(self) -> "Delta":
        """The delta as it is kept: its values in the precision that they are stored in, the head as it is."""
        return replace(self, values={key: round_to_float16(value) for key, value in self.values.items()})

    @property
    def parameter_count(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors().values())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Delta":
        """The same delta with `change` applied to every tensor."""
        values = {key: change(value) for key, value in self.values.items()}
        return replace(self, values=values, head=self.head and self.head.map(change))

    def trainable(self, device: torch.device, stage: int = 0) -> "Delta":
        """A copy on `device` whose tensors are leaves that take gradients: the head's and those of a stage's edits.

        Whole numbers never do.
        """
        edits = self.settings.edits()

        def learns(key: str) -> bool:
            _, number, name = key.split("/")
            edit = edits[int(number)]
            return stage in edit.stages and not (isinstance(edit.form, HasFrozenValues) and edit.form.is_frozen(name))

        def leaf(tensor: Tensor, *, learning: bool = True) -> Tensor:
            kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
            return tensor.detach().to(device, kind, copy=True).requires_grad_(learning and tensor.is_floating_point())

        values = {key: leaf(value, learning=learns(key)) for key, value in self.values.items()}
        return replace(self, values=values, head=self.head and self.head.map(leaf))

    def detached(self) -> "Delta":
        """A copy in memory of its own, without gradients, on the CPU."""
        return self.map(lambda tensor: tensor.detach().to("cpu", copy=True).contiguous())

    def to(self, device: torch.device) -> "Delta":
        return self.map(lambda tensor: tensor.to(device))

    def to_bytes(self) -> bytes:
        """The delta as a safetensors file; equal deltas give equal bytes."""
        return serialize(self.detached().storage_tensors(), self.metadata())

    def metadata(self) -> dict[str, Any]:
        """All but the tensors, as JSON."""
        return {
            "method": self.method,
            "settings": self.settings.model_dump(mode="json"),
            "backbone": self.backbone,
            **({"labels": self.head.labels, "pooling": self.head.pooling} if self.head else {}),
            **({"kind": self.kind} if self.kind else {}),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of `to_bytes()`: the name under which the delta is stored."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def load_delta(data: bytes) -> Delta:
    """Read a delta back from `to_bytes()`.

    Raises BlobError when the bytes are no tensors or of a newer format, DeltaError when they are no delta, or of a
    method that this version does not know.
    """
    tensors, about = deserialize(data, what="delta")
    try:
        return delta_from_tensors(tensors, about)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DeltaError(f"these {len(data)} bytes are not a stored delta ({reason}); restore the blob") from error


def delta_from_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Delta:
    """The delta of these tensors, in their order, that `Delta.about` says all else of.

    Raises DeltaError for a method that this version does not know; KeyError, TypeError or ValueError for no delta.
    """
    values = {key: unpack_float32(tensor) for key, tensor in tensors.items()}
    head, method = _head(values, about), METHODS.get(about["method"])
    if method is None:
        raise DeltaError(f"the delta is of method {about['method']!r}; known: {', '.join(METHODS)}")
    settings, kind = method.model_validate(about["settings"]), dict(about.get("kind", {}))
    return Delta(about["method"], settings, about["backbone"], values, head, kind)


def _head(tensors: dict[str, Tensor], about: Mapping[str, Any]) -> Head | None:
    """Take the head out of a file's tensors; one without labels has none."""
    if "labels" not in about and "kind" in about:
        return None
    pooling = TypeAdapter(Pooling).validate_python(about["pooling"])
    return Head(tensors.pop("head/weight"), tensors.pop("head/bias"), tuple(about["labels"]), pooling)


def round_to_float16(value: Tensor) -> Tensor:
    """The nearest numbers v' that float16 has, in the type of v; v itself unless ‖v − v'‖ < 2⁻¹⁰ ‖v‖.

    So values beyond its range, below it, or that are no numbers stay as they are, and so do whole numbers.
    """
    if not value.is_floating_point():
        return value
    nearest = value.half().to(value.dtype)
    return nearest if (value - nearest).norm() < MAX_RELATIVE_ERROR * value.norm() else value


def pack_float16(value: Tensor) -> Tensor:
    """A float32 tensor in float16 where that holds it to the bit; any other as it is."""
    if value.dtype != torch.float32:
        return value
    half = value.half()
    return half if torch.equal(half.float(), value) else value


def unpack_float32(value: Tensor) -> Tensor:
    """What `to_stored` was given."""
    return value.float() if value.dtype == torch.float16 else value
