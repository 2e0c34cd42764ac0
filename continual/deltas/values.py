"""The values of a delta's edits in one backbone: what they are called, how they begin, what is kept, what fits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.sites import Place
from continual.deltas.delta import Delta
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings
from continual.deltas.protocols import HasFinalForm, HasSharedValues, PlaceRestricted, Regularized, Values, implements
from continual.errors import DeltaError, MethodError

SHARED_PREFIX = "shared"  # stands for the place in the names of values that all places of an edit have in common


def iterate_edits(backbone: Backbone, settings: MethodSettings) -> Iterator[tuple[Place, str, Edit]]:
    """Every edit, in order, at every place it applies to, with the prefix of its values' names."""
    for number, edit in enumerate(settings.edits()):
        for place in _places(backbone, edit):
            yield place, f"{place.name}/{number}", edit


def _places(backbone: Backbone, edit: Edit) -> Sequence[Place]:
    try:
        found = backbone.modules_at(edit.site)
    except MethodError:  # the family has no such site
        if edit.optional:
            return ()
        raise
    if isinstance(edit.form, PlaceRestricted):
        _check_takes(backbone, edit.site, edit.form, found)
    return found if edit.where is None else edit.where(found)


def _check_takes(backbone: Backbone, site: str, form: PlaceRestricted, places: Sequence[Place]) -> None:
    """Raise MethodError where the form is not for one of the places of a site."""
    if wrong := [place.name for place in places if not form.supports(place)]:
        if packed := [place.name for place in places if place.is_hidden_state and not place.has_readable_weight]:
            raise MethodError(
                f"the method changes the weight of {packed[0]} itself, which is quantised or on the disk; "
                "use one that leaves it as it is, as lora, adapter and prefix do, or a float32 backbone on one device"
            )
        own = backbone.family.stack.sites
        fitting = [name for name in own if all(map(form.supports, backbone.modules_at(name)))]
        raise MethodError(
            f"site {site!r} stands for {wrong[0]}, where the method changes nothing; "
            f"give sites among: {', '.join(fitting)}"
        )


def values_of(values: Values, prefix: str) -> dict[str, Tensor]:
    """The values of one edit at one place by their own names, those that all its places share among them."""
    return {name: values[key] for name, key in value_keys(values, prefix).items()}


def value_keys(values: Values, prefix: str) -> dict[str, str]:
    """The same values' keys, by their own names."""
    found = (prefix, _shared(prefix))
    return {key.rpartition("/")[2]: key for key in values if key.rpartition("/")[0] in found}


def _shared(prefix: str) -> str:
    return f"{SHARED_PREFIX}/{prefix.rpartition('/')[2]}"


def init_values(backbone: Backbone, settings: MethodSettings, *, seed: int) -> dict[str, Tensor]:
    """Values of a delta that has learned nothing yet.

    Raises MethodError where the backbone has no place for an edit.
    """
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for number, edit in enumerate(settings.edits()):
        found = _places(backbone, edit)
        if isinstance(edit.form, HasSharedValues):
            for name, tensor in edit.form.init_shared(found, generator).items():
                values[f"{SHARED_PREFIX}/{number}/{name}"] = tensor
        for place in found:
            d_read = place.d_in if edit.reads is Reads.INPUT else place.d_out
            for name, tensor in edit.form.init_values(place, d_read, generator).items():
                values[f"{place.name}/{number}/{name}"] = tensor
    return values


def finalize(backbone: Backbone, delta: Delta, *, stage: int) -> Delta:
    """The delta as it is kept once a stage is over: at each place, values of forms that finish are replaced."""
    return replace(delta, values=_finished(backbone, delta.settings, delta.values, stage))


def _finished(backbone: Backbone, settings: MethodSettings, values: Values, stage: int) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    over: set[str] = set()
    for place, prefix, edit in iterate_edits(backbone, settings):
        if isinstance(edit.form, HasFinalForm) and edit.stages[0] <= stage:
            over |= {prefix, _shared(prefix)}
            own = edit.form.finalize(values_of(values, prefix), place)
            kept |= {f"{prefix}/{name}": value for name, value in own.items()}
    return {key: value for key, value in values.items() if key.rpartition("/")[0] not in over} | kept


def regularization_loss(backbone: Backbone, delta: Delta) -> Tensor | None:
    """What the delta's edits add to the loss, in nats; None where they add nothing."""
    if not any(implements(type(edit.form), Regularized) for edit in delta.settings.edits()):
        return None
    terms = [
        edit.form.penalty(values_of(delta.values, prefix))
        for _, prefix, edit in iterate_edits(backbone, delta.settings)
        if isinstance(edit.form, Regularized)
    ]
    return torch.stack(terms).sum()


def check_compatible(backbone: Backbone, delta: Delta) -> None:
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


def can_warm_start_from(backbone: Backbone, delta: Delta, settings: MethodSettings) -> bool:
    """Whether training by `settings` may begin with the values of `delta`.

    Its settings must be the same, and its values those of a fresh delta by names and shapes: values that were replaced
    when training was over cannot be trained the same way again.
    """
    return delta.settings == settings and _shapes(delta.values) == _allowed(backbone, settings)[0]


def can_be_retrained(backbone: Backbone, settings: MethodSettings) -> bool:
    """Whether what training by `settings` keeps can be trained again: its values are those that it began with."""
    began, *_, kept = _allowed(backbone, settings)
    return began == kept


Shapes = Mapping[str, tuple[int, ...]]
_KNOWN: WeakKeyDictionary[Any, dict[tuple[MethodSettings, bool], tuple[Shapes, ...]]] = WeakKeyDictionary()  # by model


def _allowed(backbone: Backbone, settings: MethodSettings) -> tuple[Shapes, ...]:
    """The shapes that values may have here: while they are trained, and as they are kept after each stage."""
    known, key = _KNOWN.setdefault(backbone.model, {}), (settings, backbone.edits_decoder)
    if key not in known:
        values = init_values(backbone, settings, seed=0)
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
