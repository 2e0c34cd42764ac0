"""What parity tests share: outputs and gradients through a delta, and through the same equation written elsewhere.

Only the texts' own tokens count: what a model makes of padding is nobody's result.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached
from continual.features.tokens import pad, tokenize

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave"]
Found = tuple[Tensor, dict[str, Tensor]]  # outputs, and gradients by the names of the delta's values
Change = Callable[[int, Tensor, Tensor], Tensor]  # of a layer's number, what enters a block and what leaves it


def batch_of(backbone: Backbone) -> dict[str, Tensor]:
    return pad(backbone, tokenize(backbone, TEXTS, max_length=32), range(len(TEXTS)))


def _found(backbone: Backbone, hidden: Tensor, leaves: Mapping[str, Tensor]) -> Found:
    """The texts' own states, and the gradients of a sum of them with unequal weights, so that every value has one."""
    own = hidden * batch_of(backbone)["attention_mask"].unsqueeze(-1)
    weights = torch.randn(own.shape, generator=torch.Generator().manual_seed(9))
    torch.autograd.backward((own * weights).sum())
    return own.detach(), {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


def through_delta(backbone: Backbone, delta: Delta, *, stage: int = 0) -> Found:
    own = delta.trainable(torch.device("cpu"), stage)
    with attached(backbone, own):
        return _found(backbone, backbone.hidden_states(batch_of(backbone)), own.values)


def through_equation(backbone: Backbone, delta: Delta, hidden: Callable[[dict[str, Tensor]], Tensor]) -> Found:
    """The same by a function of the delta's values."""
    leaves = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in delta.values.items()}
    return _found(backbone, hidden(leaves), leaves)


def through_weights(
    backbone: Backbone, delta: Delta, changed: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> Found:
    """The same with parameters of the model replaced by a function of the delta's values."""
    return through_equation(backbone, delta, lambda values: with_weights(backbone, changed(values)))


def with_weights(backbone: Backbone, changed: Mapping[str, Tensor]) -> Tensor:
    hidden: Tensor = functional_call(backbone.model, dict(changed), kwargs=batch_of(backbone)).last_hidden_state
    return hidden


Owner = tuple[Tensor, Callable[[Tensor], Tensor]]  # a parameter, and the view of it that is one value of a delta


def whole(parameter: Tensor) -> Owner:
    return parameter, lambda tensor: tensor


def through_parameters(
    backbone: Backbone, hidden: Callable[[], Tensor], owners: Mapping[str, Owner], delta: Delta
) -> Found:
    """The same by another model, parts of whose parameters are given the delta's values."""
    for key, (parameter, view) in owners.items():
        parameter.requires_grad_()
        view(parameter.data).copy_(delta.values[key])
    states, _ = _found(backbone, hidden(), {})
    return states, {
        key: view(parameter.grad) for key, (parameter, view) in owners.items() if parameter.grad is not None
    }


def assert_same(found: Found, expected: Found) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=2e-5)
    assert found[1].keys() == expected[1].keys()
    for key, gradient in expected[1].items():
        name_it = partial("{}: {}".format, key)
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-3, atol=2e-4, msg=name_it)


def module_names(backbone: Backbone, *sites: str) -> dict[str, str]:
    """The names in the model of the modules that sites are of, by the names of the places."""
    names = {id(module): name for name, module in backbone.model.named_modules()}
    return {place.name: names[id(place.output_module)] for site in sites for place in backbone.modules_at(site)}


def other_norms(backbone: Backbone, values: Mapping[str, Tensor], *, first: int) -> dict[str, Tensor]:
    """Weights of norms whose outputs times m plus c are wanted, m and c of edits `first` and `first` + 1."""
    changed = {}
    for place, name in module_names(backbone, "norms").items():
        if f"{place}/{first}/vector" in values:
            gain, bias = (values[f"{place}/{number}/vector"] for number in (first, first + 1))
            changed[f"{name}.weight"] = gain * backbone.model.get_parameter(f"{name}.weight")
            changed[f"{name}.bias"] = gain * backbone.model.get_parameter(f"{name}.bias") + bias
    return changed


def unchanged(layer: int, entered: Tensor, left: Tensor) -> Tensor:
    return left


def written_out(
    backbone: Backbone,
    *,
    attn: Change = unchanged,
    ffn: Change = unchanged,
    heads: Change = unchanged,
    norm: Callable[[str, Tensor], Tensor] = lambda place, left: left,
    prefix: Callable[[int], tuple[Tensor, Tensor]] | None = None,
    before: int = 0,
) -> Tensor:
    """BERT's layers once more, post-norm as Vaswani et al. (2017) have them, with places for changes.

    heads: of the heads' outputs side by side, given the queries · norm: of what a norm returns, by the name of its
    place · prefix: keys and values [P, D] before a layer's own · before: how many positions stand before the texts'.
    """
    model, batch = backbone.model, batch_of(backbone)
    count, mask = model.config.num_attention_heads, batch["attention_mask"].bool()
    first = model.config.pad_token_id + 1 if "roberta" in backbone.family.name else 0
    x = norm("norm.embed", model.embeddings(batch["input_ids"], position_ids=mask.cumsum(1) - 1 + first + before))

    def split(states: Tensor) -> Tensor:
        return torch.unflatten(states, -1, (count, -1)).transpose(-3, -2)

    for n, layer in enumerate(model.encoder.layer):
        inner = layer.attention.self
        query, key, value = inner.query(x), inner.key(x), inner.value(x)
        seen = mask
        if prefix:
            key, value = (
                torch.cat((rows.expand(len(x), -1, -1), states), dim=1)
                for rows, states in zip(prefix(n), (key, value), strict=True)
            )
            seen = F.pad(mask, (key.shape[1] - mask.shape[1], 0), value=True)
        scores = split(query) @ split(key).mT / (x.shape[-1] // count) ** 0.5
        weights = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(dim=-1)
        mixed = heads(n, query, (weights @ split(value)).transpose(1, 2).flatten(2))
        x = layer.attention.output.LayerNorm(x + attn(n, x, layer.attention.output.dense(mixed)))
        x = norm(f"layer.{n}.norm.attn", x)
        x = layer.output.LayerNorm(x + ffn(n, x, layer.output.dense(F.gelu(layer.intermediate.dense(x)))))
        x = norm(f"layer.{n}.norm.ffn", x)
    return x
