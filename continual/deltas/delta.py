"""What one task owns: the values of its edits, and its head."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from continual.backbone import Backbone, Pooling
from continual.deltas.edit import Edit, Finishes, Holds, Penalised, Reads, Shares, Values
from continual.deltas.method import MethodSettings
from continual.deltas.methods import METHODS
from continual.errors import DeltaError, MethodError
from continual.sites import Place

SHARED = "shared"  # stands for the place in the names of values that all places of an edit have in common
_METADATA = "continual"  # one key only: the order of several would not be the same in every process


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
            return stage in edit.stages and not (isinstance(edit.form, Holds) and edit.form.held(name))

        def leaf(tensor: Tensor, *, learning: bool = True) -> Tensor:
            kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
            return tensor.detach().to(device, kind, copy=True).requires_grad_(learning and tensor.is_floating_point())

        values = {key: leaf(value, learning=learns(key)) for key, value in self.values.items()}
        return replace(self, values=values, head=self.head and self.head.map(leaf))

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
            **({"labels": self.head.labels, "pooling": self.head.pooling} if self.head else {}),
            **({"kind": self.kind} if self.kind else {}),
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
        head = _head(tensors, about)
        method = METHODS.get(about["method"])
        if method is None:
            raise DeltaError(f"the delta is of method {about['method']!r}; known: {', '.join(METHODS)}")
        settings, kind = method.model_validate(about["settings"]), dict(about.get("kind", {}))
        return Delta(about["method"], settings, about["backbone"], tensors, head, kind)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DeltaError(f"these {len(data)} bytes are not a stored delta ({reason}); restore the blob") from error


def _head(tensors: dict[str, Tensor], about: Mapping[str, Any]) -> Head | None:
    """Take the head out of a file's tensors; one without labels has none."""
    if "labels" not in about and "kind" in about:
        return None
    pooling = TypeAdapter(Pooling).validate_python(about["pooling"])
    return Head(tensors.pop("head/weight"), tensors.pop("head/bias"), tuple(about["labels"]), pooling)


def _metadata(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length])["__metadata__"])


def steps(backbone: Backbone, settings: MethodSettings) -> Iterator[tuple[Place, str, Edit]]:
    """Every edit, in order, at every place it applies to, with the prefix of its values' names."""
    for number, edit in enumerate(settings.edits()):
        for place in _places(backbone, edit):
            yield place, f"{place.name}/{number}", edit


def _places(backbone: Backbone, edit: Edit) -> Sequence[Place]:
    try:
        found = backbone.places(edit.site)
    except MethodError:  # the family has no such site
        if edit.optional:
            return ()
        raise
    return found if edit.choice is None else edit.choice(found)


def values_of(values: Values, prefix: str) -> dict[str, Tensor]:
    """The values of one edit at one place by their own names, those that all its places share among them."""
    found = (prefix, _shared(prefix))
    return {key.rpartition("/")[2]: value for key, value in values.items() if key.rpartition("/")[0] in found}


def _shared(prefix: str) -> str:
    return f"{SHARED}/{prefix.rpartition('/')[2]}"


def fresh_values(backbone: Backbone, settings: MethodSettings, *, seed: int) -> dict[str, Tensor]:
    """Values of a delta that has learned nothing yet.

    Raises MethodError where the backbone has no place for an edit.
    """
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for number, edit in enumerate(settings.edits()):
        found = _places(backbone, edit)
        if isinstance(edit.form, Shares):
            for name, tensor in edit.form.shared(found, generator).items():
                values[f"{SHARED}/{number}/{name}"] = tensor
        for place in found:
            d_read = place.d_in if edit.reads is Reads.INPUT else place.d_out
            for name, tensor in edit.form.start(place, d_read, generator).items():
                values[f"{place.name}/{number}/{name}"] = tensor
    return values


def finished(backbone: Backbone, delta: Delta, *, stage: int) -> Delta:
    """The delta as it is kept once a stage is over: at each place, values of forms that finish are replaced."""
    return replace(delta, values=_finished(backbone, delta.settings, delta.values, stage))


def _finished(backbone: Backbone, settings: MethodSettings, values: Values, stage: int) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    over: set[str] = set()
    for place, prefix, edit in steps(backbone, settings):
        if isinstance(edit.form, Finishes) and edit.stages[0] <= stage:
            over |= {prefix, _shared(prefix)}
            own = edit.form.finished(values_of(values, prefix), place)
            kept |= {f"{prefix}/{name}": value for name, value in own.items()}
    return {key: value for key, value in values.items() if key.rpartition("/")[0] not in over} | kept


def penalty(backbone: Backbone, delta: Delta) -> Tensor | None:
    """What the delta's edits add to the loss, in nats; None where they add nothing."""
    terms = [
        edit.form.penalty(values_of(delta.values, prefix))
        for _, prefix, edit in steps(backbone, delta.settings)
        if isinstance(edit.form, Penalised)
    ]
    return torch.stack(terms).sum() if terms else None


def check_fits(backbone: Backbone, delta: Delta) -> None:
    """Raise DeltaError unless `delta` belongs to `backbone` and has every tensor of its method, and no other."""
    if delta.backbone != backbone.fingerprint:
        raise DeltaError(
            f"the delta was learned on backbone {delta.backbone[:12]}, not on {backbone.name!r} "
            f"({backbone.fingerprint[:12]}); load the backbone it was learned on, or learn the task again on this one"
        )
    classes, found = len(delta.head.labels) if delta.head else 0, _shapes(delta.tensors())
    head = {"head/weight": (classes, backbone.hidden_size), "head/bias": (classes,)} if delta.head else {}
    misfits = [_misfit({**shapes, **head}, found) for shapes in _allowed(backbone, delta.settings)]
    if all(misfits):
        raise DeltaError(
            f"a {delta.method} delta does not fit backbone {backbone.name!r}: {misfits[-1]} "
            f"(its head is for {classes} labels)"
        )


def copyable(backbone: Backbone, delta: Delta, settings: MethodSettings) -> bool:
    """Whether training by `settings` may begin with the values of `delta`.

    Its settings must be the same, and its values those of a fresh delta by names and shapes: values that were replaced
    when training was over cannot be trained the same way again.
    """
    return delta.settings == settings and _shapes(delta.values) == _allowed(backbone, settings)[0]


Shapes = Mapping[str, tuple[int, ...]]
_KNOWN: WeakKeyDictionary[Any, dict[tuple[MethodSettings, bool], tuple[Shapes, ...]]] = WeakKeyDictionary()  # by model


def _allowed(backbone: Backbone, settings: MethodSettings) -> tuple[Shapes, ...]:
    """The shapes that values may have here: while they are trained, and as they are kept after each stage."""
    known, key = _KNOWN.setdefault(backbone.model, {}), (settings, backbone.generates)
    if key not in known:
        values = fresh_values(backbone, settings, seed=0)
        shapes = [_shapes(values)]
        for stage in range(settings.stages):
            values = _finished(backbone, settings, values, stage)
            shapes.append(_shapes(values))
        known[key] = tuple(shapes)
    return known[key]


def _shapes(tensors: Values) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _misfit(expected: Shapes, found: Shapes) -> str:
    """How the shapes found differ from those expected; empty where they do not."""
    if expected == found:
        return ""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [
        f"{key}: {found[key]}, not {expected[key]}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key] != found[key]
    ]
    return f"missing tensors {missing}, unknown tensors {unknown}, other shapes {shapes}"
