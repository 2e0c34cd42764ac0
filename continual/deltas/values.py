"""Values of a delta's edits in one backbone: keys, initialization, final form and compatibility.

A value's key is `place/number of the edit/name`, such as `layer.0.attn.q/0/A`; the part before the last slash is its
*prefix*. Values that all places of an edit share have `shared` for the place.
"""

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
from continual.deltas.protocols import (
    HasFinalForm,
    HasSharedValues,
    HasValueShapes,
    PlaceRestricted,
    Regularized,
    Values,
    implements,
)
from continual.errors import DeltaError, MethodError

SHARED_PREFIX = "shared"  # stands for the place in the keys of values that all places of an edit have in common


def iterate_edits(
    backbone: Backbone, settings: MethodSettings, *, stage: int | None = None
) -> Iterator[tuple[Place, str, Edit]]:
    """Yield every edit, in order, at every place it applies to, with the prefix of its values' keys.

    Args:
        backbone: The backbone with the places.
        settings: Settings of the method.
        stage: The last stage of training whose edits are yielded; None for all.

    Yields:
        (place, prefix, edit); the prefix is `place.name/number of the edit`, with the first of several places that
        share values.

    Raises:
        MethodError: The backbone has no place for an edit.
    """
    for number, edit in enumerate(settings.edits()):
        if stage is None or edit.stages[0] <= stage:
            places = _places_of(backbone, edit)
            for place, owner in zip(places, _value_owners(places, edit), strict=True):
                yield place, f"{owner.name}/{number}", edit


def _value_owners(places: Sequence[Place], edit: Edit) -> Sequence[Place]:
    """Return the place under whose name each place has its values: the first with its weight, where values are tied."""
    if not edit.ties_values:
        return places
    owners: dict[int, Place] = {}
    return [owners.setdefault(id(place.output_module.get_parameter("weight")), place) for place in places]


def _places_of(backbone: Backbone, edit: Edit) -> Sequence[Place]:
    try:
        places = backbone.modules_at(edit.site)
    except MethodError:  # the family has no such site
        if edit.optional:
            return ()
        raise
    if edit.reads.is_residual and not all(place.is_block for place in places):
        raise MethodError(
            f"site {edit.site!r} is no block, so there is no residual stream around it; give a block, as attn or ffn"
        )
    if isinstance(edit.form, PlaceRestricted):
        _require_supported(backbone, edit.site, edit.form, places)
    return places if edit.where is None else edit.where(places)


def _require_supported(backbone: Backbone, site: str, form: PlaceRestricted, places: Sequence[Place]) -> None:
    """Raise MethodError unless the form supports every place of the site."""
    if unsupported := [place.name for place in places if not form.supports(place)]:
        if unreadable := [place.name for place in places if place.is_hidden_state and not place.has_readable_weight]:
            raise MethodError(
                f"the method changes the weight of {unreadable[0]} itself, which is quantised or on the disk; "
                "use one that leaves it as it is, as lora, adapter and prefix do, or a float32 backbone on one device"
            )
        sites = backbone.family.stack.sites
        supported = [name for name in sites if all(map(form.supports, backbone.modules_at(name)))]
        raise MethodError(
            f"site {site!r} stands for {unsupported[0]}, where the method changes nothing; "
            f"give sites among: {', '.join(supported)}"
        )


def values_of(values: Values, prefix: str) -> dict[str, Tensor]:
    """Return the values of one edit at one place by their names in the form, shared values included.

    Args:
        values: All values of a delta by their keys, of any shape.
        prefix: The edit and the place, as `iterate_edits` gives it.
    """
    return {name: values[key] for name, key in value_keys(values, prefix).items()}


def value_keys(values: Values, prefix: str) -> dict[str, str]:
    """Return the keys of the values of one edit at one place, shared ones included, by name in the form.

    >>> keys = ("layer.0.attn.q/0/A", "layer.1.attn.q/0/A", "shared/0/theta")
    >>> value_keys(dict.fromkeys(keys, torch.zeros(1)), "layer.1.attn.q/0")
    {'A': 'layer.1.attn.q/0/A', 'theta': 'shared/0/theta'}
    """
    prefixes = (prefix, _shared_prefix(prefix))
    return {key.rpartition("/")[2]: key for key in values if key.rpartition("/")[0] in prefixes}


def _shared_prefix(prefix: str) -> str:
    return f"{SHARED_PREFIX}/{prefix.rpartition('/')[2]}"


def init_values(backbone: Backbone, settings: MethodSettings, *, seed: int) -> dict[str, Tensor]:
    """Draw the values of a delta that has learned nothing yet, by key; their shapes are the forms'.

    Raises:
        MethodError: The backbone has no place for an edit.
    """
    return _fresh_values(backbone, settings, seed=seed)


def _fresh_values(
    backbone: Backbone, settings: MethodSettings, *, seed: int, shapes_only: bool = False
) -> dict[str, Tensor]:
    """Draw fresh values; with `shapes_only`, zeros in place of those that are costly to compute."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for number, edit in enumerate(settings.edits()):
        places = _places_of(backbone, edit)
        if isinstance(edit.form, HasSharedValues):
            for name, tensor in edit.form.init_shared(places, generator).items():
                values[f"{SHARED_PREFIX}/{number}/{name}"] = tensor
        for place in {owner.name: owner for owner in _value_owners(places, edit)}.values():
            d_read = place.d_in if edit.reads is Reads.INPUT else place.d_out
            fresh = (
                {name: torch.zeros(shape) for name, shape in edit.form.value_shapes(place, d_read).items()}
                if shapes_only and isinstance(edit.form, HasValueShapes)
                else edit.form.init_values(place, d_read, generator)
            )
            values |= {f"{place.name}/{number}/{name}": tensor for name, tensor in fresh.items()}
    return values


def finalize(backbone: Backbone, delta: Delta, *, stage: int) -> Delta:
    """Return the delta with the final values of every form that has some and whose first stage is over.

    Args:
        backbone: The delta's.
        delta: With the values at the end of `stage`.
        stage: Number of the stage of training that has just ended.
    """
    return replace(delta, values=_final_values(backbone, delta.settings, delta.values, stage))


def _final_values(backbone: Backbone, settings: MethodSettings, values: Values, stage: int) -> dict[str, Tensor]:
    final: dict[str, Tensor] = {}
    replaced: set[str] = set()
    for place, prefix, edit in iterate_edits(backbone, settings):
        if isinstance(edit.form, HasFinalForm) and edit.stages[0] <= stage:
            replaced |= {prefix, _shared_prefix(prefix)}
            final |= {
                f"{prefix}/{name}": value
                for name, value in edit.form.finalize(values_of(values, prefix), place).items()
            }
    return {key: value for key, value in values.items() if key.rpartition("/")[0] not in replaced} | final


def regularization_loss(backbone: Backbone, delta: Delta) -> Tensor | None:
    """Compute the sum of all edits' penalties, a scalar in nats; None where no form has one."""
    if not any(implements(type(edit.form), Regularized) for edit in delta.settings.edits()):
        return None
    terms = [
        edit.form.penalty(values_of(delta.values, prefix))
        for _, prefix, edit in iterate_edits(backbone, delta.settings)
        if isinstance(edit.form, Regularized)
    ]
    return torch.stack(terms).sum()


def check_compatible(backbone: Backbone, delta: Delta) -> None:
    """Raise DeltaError unless `delta` belongs to `backbone` and has exactly the tensors of its method.

    Raises:
        DeltaError: Another backbone, or missing, unknown or misshapen tensors, which are listed.
    """
    if delta.backbone != backbone.fingerprint:
        raise DeltaError(
            f"the delta was learned on backbone {delta.backbone[:12]}, not on {backbone.name!r} "
            f"({backbone.fingerprint[:12]}); load the backbone it was learned on, or learn the task again on this one"
        )
    if delta.head and delta.head.layers and delta.head.layers > backbone.num_layers:
        raise DeltaError(
            f"the delta's head reads the states behind {delta.head.layers} layers, and backbone {backbone.name!r} has "
            f"{backbone.num_layers}; learn the task again on this one"
        )
    classes, shapes = len(delta.head.labels) if delta.head else 0, _shapes(delta.tensors())
    head = {"head/weight": (classes, backbone.hidden_size), "head/bias": (classes,)} if delta.head else {}
    mismatches = [_mismatch({**valid, **head}, shapes) for valid in _shapes_by_stage(backbone, delta.settings)]
    if all(mismatches):
        raise DeltaError(
            f"a {delta.method} delta does not fit backbone {backbone.name!r}: {mismatches[-1]} "
            f"(its head is for {classes} labels)"
        )


def can_warm_start_from(backbone: Backbone, delta: Delta, settings: MethodSettings) -> bool:
    """Return whether training by `settings` can start from the values of `delta`.

    Its settings must be equal, and its values must have the keys and shapes of fresh ones: final values that replaced
    the trained ones cannot be trained the same way again.
    """
    return delta.settings == settings and _shapes(delta.values) == _shapes_by_stage(backbone, settings)[0]


def can_be_retrained(backbone: Backbone, settings: MethodSettings) -> bool:
    """Return whether stored values of a method can be trained again: they have the shapes of fresh ones."""
    initial, *_, final = _shapes_by_stage(backbone, settings)
    return initial == final


Shapes = Mapping[str, tuple[int, ...]]
_SHAPES: WeakKeyDictionary[Any, dict[tuple[MethodSettings, bool], tuple[Shapes, ...]]] = WeakKeyDictionary()  # by model


def _shapes_by_stage(backbone: Backbone, settings: MethodSettings) -> tuple[Shapes, ...]:
    """Return the shapes of fresh values, then of the values after each stage; cached per model."""
    cached, key = _SHAPES.setdefault(backbone.model, {}), (settings, backbone.generates)
    if key not in cached:
        values = _fresh_values(backbone, settings, seed=0, shapes_only=True)
        shapes = [_shapes(values)]
        for stage in range(settings.stages):
            values = _final_values(backbone, settings, values, stage)
            shapes.append(_shapes(values))
        cached[key] = tuple(shapes)
    return cached[key]


def _shapes(tensors: Values) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _mismatch(expected: Shapes, actual: Shapes) -> str:
    """Describe how the actual shapes differ from the expected ones; empty where they are equal."""
    if expected == actual:
        return ""
    missing, unknown = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
    shapes = [
        f"{key}: {actual[key]}, not {expected[key]}"
        for key in sorted(expected.keys() & actual.keys())
        if expected[key] != actual[key]
    ]
    return f"missing tensors {missing}, unknown tensors {unknown}, other shapes {shapes}"
