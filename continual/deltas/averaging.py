"""Average several deltas of one method into one.

    Δ = Σ_k w_k Δ_k,  Σ_k w_k = 1

A form with `weighted_average` (`Averageable`) averages the changes themselves: the sum of low-rank changes is truncated
to one rank, so deltas of any rank can take part. All other values are averaged entry by entry, as in Wortsman et al.
(2022), "Model soups" (arXiv:2203.05482).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas.compose import Add
from continual.deltas.delta import Delta, Head
from continual.deltas.method import MethodSettings
from continual.deltas.protocols import Averageable
from continual.deltas.values import init_values, iterate_edits, values_of


def average_deltas(
    backbone: Backbone, settings: MethodSettings, deltas: Sequence[Delta], weights: Sequence[float]
) -> Delta | None:
    """Return the weighted average of deltas, as values from which training by `settings` can start.

    Args:
        backbone: The deltas' backbone.
        settings: Settings of the average; the ranks and scales of the deltas may differ from them.
        deltas: At least one; method, backbone and kind of the average are those of the first.
        weights: One per delta; they sum to one.

    Returns:
        None where the values cannot be averaged: other keys (another method or other sites), other sizes that no form
        can convert, integers, or a delta without the edits of its later stages.
    """
    fresh, pairs = init_values(backbone, settings, seed=0), list(zip(deltas, weights, strict=True))
    if any(delta.values.keys() != fresh.keys() or delta.stage is not None for delta in deltas):
        return None
    values: dict[str, Tensor] = {}
    for _, prefix, edit in iterate_edits(backbone, settings):
        if isinstance(edit.form, Averageable):
            number = int(prefix.rpartition("/")[2])
            scaled = [w * _scale(delta.settings, number) / _scale(settings, number) for delta, w in pairs]
            average = edit.form.weighted_average([values_of(delta.values, prefix) for delta in deltas], scaled)
            values |= {f"{prefix}/{name}": value for name, value in average.items()}
    for key in fresh.keys() - values.keys():
        tensors = [delta.values[key] for delta in deltas]
        if len({tensor.shape for tensor in tensors}) > 1 or not tensors[0].is_floating_point():
            return None
        values[key] = weighted_mean(tensors, weights)
    if any(values[key].shape != value.shape for key, value in fresh.items()):
        return None
    first = deltas[0]
    ordered = {key: values[key] for key in fresh}
    return Delta(first.method, settings, first.backbone, ordered, _average_heads(deltas, weights), first.kind)


def _scale(settings: MethodSettings, number: int) -> float:
    """Return the factor by which the change of an edit is multiplied before it is added."""
    compose = settings.edits()[number].compose
    return compose.scale if isinstance(compose, Add) else 1.0


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Compute Σ_k w_k tensor_k [...] in float32, of tensors [...] of one shape."""
    return torch.stack([weight * tensor.float() for tensor, weight in zip(tensors, weights, strict=True)]).sum(dim=0)


def _average_heads(deltas: Sequence[Delta], weights: Sequence[float]) -> Head | None:
    """Average the heads with the first head's labels and readout, in its order; None without a first head.

    The weights of the deltas that take part are rescaled to sum to one.
    """
    first = deltas[0].head
    if first is None:
        return None
    pairs = [
        (delta.head.reorder_labels(first.labels), weight)
        for delta, weight in zip(deltas, weights, strict=True)
        if delta.head and (set(delta.head.labels), delta.head.readout) == (set(first.labels), first.readout)
    ]
    heads, shares = [head for head, _ in pairs], [weight / sum(w for _, w in pairs) for _, weight in pairs]
    weight, bias = (
        weighted_mean([head.weight for head in heads], shares),
        weighted_mean([head.bias for head in heads], shares),
    )
    return replace(first, weight=weight, bias=bias)
