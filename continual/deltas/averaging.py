"""One delta of several: what they change, on average.

A form that knows how its values add up says so (`Blends`): the sum of low-rank changes is cut back to one rank, so
deltas of any rank can take part. All other values are averaged entry by entry: Wortsman et al. (2022), "Model soups"
(arXiv:2203.05482).
"""

from collections.abc import Sequence

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
    """The average of deltas by weights that sum to one, as values with which training by `settings` may begin.

    None where their values cannot be added: of another method, at other sites, or of sizes that no form evens out.
    """
    wanted, pairs = init_values(backbone, settings, seed=0), list(zip(deltas, weights, strict=True))
    if any(delta.values.keys() != wanted.keys() for delta in deltas):
        return None
    values: dict[str, Tensor] = {}
    for _, prefix, edit in iterate_edits(backbone, settings):
        if isinstance(edit.form, Averageable):
            number = int(prefix.rpartition("/")[2])
            scaled = [w * _scale(delta.settings, number) / _scale(settings, number) for delta, w in pairs]
            own = edit.form.weighted_average([values_of(delta.values, prefix) for delta in deltas], scaled)
            values |= {f"{prefix}/{name}": value for name, value in own.items()}
    for key in wanted.keys() - values.keys():
        found = [delta.values[key] for delta in deltas]
        if len({value.shape for value in found}) > 1 or not found[0].is_floating_point():
            return None
        values[key] = weighted_mean(found, weights)
    if any(values[key].shape != fresh.shape for key, fresh in wanted.items()):
        return None
    first = deltas[0]
    ordered = {key: values[key] for key in wanted}
    return Delta(first.method, settings, first.backbone, ordered, _head(deltas, weights), first.kind)


def _scale(settings: MethodSettings, number: int) -> float:
    """By how much the change of an edit is multiplied before it is added."""
    compose = settings.edits()[number].compose
    return compose.scale if isinstance(compose, Add) else 1.0


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ_k w_k tensor_k"""
    return torch.stack([weight * tensor.float() for tensor, weight in zip(tensors, weights, strict=True)]).sum(dim=0)


def _head(deltas: Sequence[Delta], weights: Sequence[float]) -> Head | None:
    """The average of the heads that have the same outputs as the first, in its order; None where that has none."""
    first = deltas[0].head
    if first is None:
        return None
    same = [
        (delta.head.reorder_labels(first.labels), weight)
        for delta, weight in zip(deltas, weights, strict=True)
        if delta.head and (set(delta.head.labels), delta.head.pooling) == (set(first.labels), first.pooling)
    ]
    heads, shares = [head for head, _ in same], [weight / sum(w for _, w in same) for _, weight in same]
    weight, bias = (
        weighted_mean([head.weight for head in heads], shares),
        weighted_mean([head.bias for head in heads], shares),
    )
    return Head(weight, bias, first.labels, first.pooling)
