"""Deltas and heads: the learned tensors that one task owns, and the file in which they are stored."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import PositiveInt, TypeAdapter
from torch import Tensor

from continual.backbones.hub import Pooling
from continual.backbones.readout import Readout
from continual.deltas.method import METHODS, MethodSettings
from continual.deltas.protocols import HasFrozenValues
from continual.errors import DeltaError
from continual.serialization import FORMAT_VERSION, deserialize, serialize

FORMAT_OF_DEFINITIONS = 3  # since which methods are defined as they are now
MAX_RELATIVE_ERROR = 2**-10  # of a tensor's norm; numbers in float16's full range lose at most half of it each


@dataclass(frozen=True)
class Head:
    """A linear head: outputs [..., C] = states [..., D] Wᵀ + b.

    The states are one pooled vector per row, or one state per token.

    Attributes:
        weight: W [C, D].
        bias: b [C].
        labels: Names of the C outputs, by index; of a classification its labels.
        pooling: Pooling of the states into one vector.
        layers: How many of the backbone's lowest layers compute the states, as `Readout` defines it; None for all.
    """

    weight: Tensor
    bias: Tensor
    labels: tuple[str, ...]
    pooling: Pooling
    layers: int | None = None

    @property
    def readout(self) -> Readout:
        """Where the vectors are read that it acts on."""
        return Readout(self.pooling, self.layers)

    def metadata(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON; `layers` only where they are not all."""
        layers = {} if self.layers is None else {"layers": self.layers}
        return {"labels": self.labels, "pooling": self.pooling, **layers}

    def __call__(self, states: Tensor) -> Tensor:
        """Compute outputs [..., C] from states [..., D]."""
        return torch.nn.functional.linear(states, self.weight, self.bias)

    def select_labels(self, labels: Sequence[str]) -> "Head | None":
        """Return a head for `labels`: outputs of known labels less their mean, zero for new ones.

        None where the head has fewer than two of the labels, since a mean over one leaves nothing.
        """
        pairs = [(i, self.labels.index(label)) for i, label in enumerate(labels) if label in self.labels]
        if len(pairs) < 2:
            return None
        targets, sources = ([pair[side] for pair in pairs] for side in (0, 1))

        def select(tensor: Tensor) -> Tensor:
            selected = tensor.new_zeros(len(labels), *tensor.shape[1:])
            selected[targets] = tensor[sources] - tensor[sources].mean(dim=0)
            return selected

        return replace(self.map(select), labels=tuple(labels))

    def reorder_labels(self, labels: Sequence[str]) -> "Head":
        """Return the head with its outputs in the order of `labels`, a permutation of its own."""
        order = [self.labels.index(label) for label in labels]
        return replace(self.map(lambda tensor: tensor[order]), labels=tuple(labels))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Head":
        """Return the head with `change` applied to weight [C, D] and bias [C]."""
        return replace(self, weight=change(self.weight), bias=change(self.bias))

    def to(self, device: torch.device) -> "Head":
        """Return the head on a device."""
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class Delta:
    """The edits' values and the head of one task, for one backbone.

    Attributes:
        method: Name of the method in `METHODS`.
        settings: Settings of the method, from which its edits follow.
        backbone: Fingerprint of the backbone.
        values: Learned tensors by `place/number of the edit/name`, such as `layer.0.attn.q/0/A`.
        head: None where the language model itself answers.
        kind: The kind of task, as `continual.kinds` reads and writes it; empty for a classification by the head.
        stage: The last stage of training whose edits are applied; None for all edits. An edit of a later stage has its
            fresh values.
    """

    method: str
    settings: MethodSettings
    backbone: str
    values: Mapping[str, Tensor]
    head: Head | None
    kind: Mapping[str, Any] = field(default_factory=dict)
    stage: int | None = None

    def at_stage(self, stage: int) -> "Delta":
        """Return the delta in or after a stage of training, without the edits of later ones.

        A delta whose edits are all applied, such as a trained one, keeps them.
        """
        last_stage = max((edit.stages[0] for edit in self.settings.edits()), default=0)
        return self if self.stage is None else replace(self, stage=None if stage >= last_stage else stage)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by their names in the file: the values, `head/weight` [C, D] and `head/bias` [C]."""
        head = {"head/weight": self.head.weight, "head/bias": self.head.bias} if self.head else {}
        return {**self.values, **head}

    def storage_tensors(self) -> dict[str, Tensor]:
        """Return `tensors` as stored, shapes unchanged: values in float16 where that is exact, the head as it is."""
        return replace(self, values={key: pack_float16(value) for key, value in self.values.items()}).tensors()

    @property
    def size(self) -> int:
        """Bytes of the stored tensors, without names and settings."""
        return sum(tensor.nbytes for tensor in self.storage_tensors().values())

    def quantise_to_float16(self) -> "Delta":
        """Return the delta with its values rounded to the precision of storage; the head is unchanged."""
        return replace(self, values={key: round_to_float16(value) for key, value in self.values.items()})

    @property
    def parameter_count(self) -> int:
        """Number of entries of all tensors, the head's included."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Delta":
        """Return the delta with `change` applied to every tensor [...]."""
        values = {key: change(value) for key, value in self.values.items()}
        return replace(self, values=values, head=self.head and self.head.map(change))

    def trainable(self, device: torch.device, stage: int = 0) -> "Delta":
        """Return a copy in float32 on `device` whose trained tensors are leaves that require gradients.

        Trained are the head and the values of the edits of `stage`, without frozen values and integer tensors.
        """
        edits = self.settings.edits()

        def is_trained(key: str) -> bool:
            _, number, name = key.split("/")
            edit = edits[int(number)]
            return stage in edit.stages and not (isinstance(edit.form, HasFrozenValues) and edit.form.is_frozen(name))

        def leaf(tensor: Tensor, *, trained: bool = True) -> Tensor:
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            return tensor.detach().to(device, dtype, copy=True).requires_grad_(trained and tensor.is_floating_point())

        values = {key: leaf(value, trained=is_trained(key)) for key, value in self.values.items()}
        return replace(self, values=values, head=self.head and self.head.map(leaf))

    def detached(self) -> "Delta":
        """Return a copy in memory of its own, without gradients, on the CPU."""
        return self.map(lambda tensor: tensor.detach().to("cpu", copy=True).contiguous())

    def to(self, device: torch.device) -> "Delta":
        """Return the delta on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def to_bytes(self) -> bytes:
        """Return the delta as a safetensors file; equal deltas give equal bytes."""
        return serialize(self.detached().storage_tensors(), self.metadata())

    def metadata(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON."""
        return {
            "format": FORMAT_VERSION,
            "method": self.method,
            "settings": self.settings.model_dump(mode="json"),
            "backbone": self.backbone,
            **(self.head.metadata() if self.head else {}),
            **({"kind": self.kind} if self.kind else {}),
            **({} if self.stage is None else {"stage": self.stage}),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of `to_bytes()`: the name under which the delta is stored."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def load_delta(data: bytes) -> Delta:
    """Read a delta back from `to_bytes()`.

    Raises:
        BlobError: The bytes are no tensors, or of a newer format.
        DeltaError: They are no delta, or of a method that this version does not have.
    """
    tensors, metadata = deserialize(data, what="delta")
    try:
        return delta_from_tensors(tensors, metadata)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DeltaError(f"these {len(data)} bytes are not a stored delta ({reason}); restore the blob") from error


def delta_from_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Delta:
    """Build a delta from the tensors and the metadata of its file; the order of the tensors is preserved.

    Args:
        tensors: As `Delta.storage_tensors` gives them, of any shapes.
        metadata: As `Delta.metadata` gives it.

    Raises:
        DeltaError: The method is not one of this version.
        KeyError, TypeError, ValueError: Tensors and metadata are no delta.
    """
    values = {key: unpack_float32(tensor) for key, tensor in tensors.items()}
    head, method = _pop_head(values, metadata), METHODS.get(metadata["method"])
    if method is None:
        raise DeltaError(f"the delta is of method {metadata['method']!r}; known: {', '.join(METHODS)}")
    settings = metadata["settings"]
    if metadata.get("format", 1) < FORMAT_OF_DEFINITIONS:
        settings = upgrade_settings(method, settings, values)
    kind, stage = dict(metadata.get("kind", {})), metadata.get("stage")
    return Delta(metadata["method"], method.model_validate(settings), metadata["backbone"], values, head, kind, stage)


def upgrade_settings(
    method: type[MethodSettings], settings: Mapping[str, Any], values: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the settings by which this release computes what a delta of format 2 or older computes.

    Args:
        method: The method.
        settings: As they were stored.
        values: The delta's values [...] by key, which tell whether it changes a decoder.
    """
    return method.upgrade(settings, generates=any(key.startswith("decoder.") for key in values))


def _pop_head(tensors: dict[str, Tensor], metadata: Mapping[str, Any]) -> Head | None:
    """Remove the head from a file's tensors and return it; metadata of a kind without labels have none."""
    if "labels" not in metadata and "kind" in metadata:
        return None
    return head_from_metadata(tensors.pop("head/weight"), tensors.pop("head/bias"), metadata)


def head_from_metadata(weight: Tensor, bias: Tensor, metadata: Mapping[str, Any]) -> Head:
    """Return the head of weight [C, D], bias [C] and what `Head.metadata` returned.

    Raises:
        KeyError, TypeError, ValueError: The metadata are not a head's.
    """
    pooling = TypeAdapter(Pooling).validate_python(metadata["pooling"])
    layers = TypeAdapter(PositiveInt | None).validate_python(metadata.get("layers"))
    return Head(weight, bias, tuple(metadata["labels"]), pooling, layers)


def round_to_float16(value: Tensor) -> Tensor:
    """Round v [...] to the nearest float16 numbers v', in its dtype, if ‖v − v'‖ < 2⁻¹⁰ ‖v‖; else keep v.

    So tensors with values beyond float16's range, below it, or NaN stay as they are, and so do integers.
    """
    if not value.is_floating_point():
        return value
    nearest = value.half().to(value.dtype)
    return nearest if (value - nearest).norm() < MAX_RELATIVE_ERROR * value.norm() else value


def pack_float16(value: Tensor) -> Tensor:
    """Return a float32 tensor [...] in float16 where that is exact; any other tensor unchanged."""
    if value.dtype != torch.float32:
        return value
    half = value.half()
    return half if torch.equal(half.float(), value) else value


def unpack_float32(value: Tensor) -> Tensor:
    """Return a float16 tensor [...] in float32, the inverse of `pack_float16`; any other tensor unchanged."""
    return value.float() if value.dtype == torch.float16 else value
