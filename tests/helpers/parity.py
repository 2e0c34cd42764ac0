"""Parity tests: outputs and gradients through a delta against a second implementation of its equation.

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
Change = Callable[[int, Tensor, Tensor], Tensor]  # from a layer's number, a block's input and its output


def batch_of(backbone: Backbone) -> dict[str, Tensor]:
    return pad(backbone, tokenize(backbone, TEXTS, max_length=32), range(len(TEXTS)))


def _with_gradients(backbone: Backbone, hidden: Tensor, leaves: Mapping[str, Tensor]) -> Found:
    """Return the states at the texts' tokens, and gradients of an unequally weighted sum of them."""
    text_states = hidden * batch_of(backbone)["attention_mask"].unsqueeze(-1)
    weights = torch.randn(text_states.shape, generator=torch.Generator().manual_seed(9))
    torch.autograd.backward((text_states * weights).sum())
    return text_states.detach(), {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


def through_delta(backbone: Backbone, delta: Delta, *, stage: int = 0) -> Found:
    trainable = delta.trainable(torch.device("cpu"), stage)
    with attached(backbone, trainable):
        return _with_gradients(backbone, backbone.hidden_states(batch_of(backbone)), trainable.values)


def through_equation(backbone: Backbone, delta: Delta, hidden: Callable[[dict[str, Tensor]], Tensor]) -> Found:
    """Return outputs and gradients of a function of the delta's values."""
    leaves = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in delta.values.items()}
    return _with_gradients(backbone, hidden(leaves), leaves)


def through_weights(
    backbone: Backbone, delta: Delta, changed: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> Found:
    """Return outputs and gradients with model parameters replaced by a function of the delta's values."""
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
    """Return outputs and gradients of another model whose parameters hold the delta's values."""
    for key, (parameter, view) in owners.items():
        parameter.requires_grad_()
        view(parameter.data).copy_(delta.values[key])
    states, _ = _with_gradients(backbone, hidden(), {})
    return states, {
        key: view(parameter.grad) for key, (parameter, view) in owners.items() if parameter.grad is not None
    }


def assert_same(actual: Found, expected: Found) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=2e-5)
    assert actual[1].keys() == expected[1].keys()
    for key, gradient in expected[1].items():
        name_it = partial("{}: {}".format, key)
        torch.testing.assert_close(actual[1][key], gradient, rtol=1e-3, atol=2e-4, msg=name_it)


def module_names(backbone: Backbone, *sites: str) -> dict[str, str]:
    """Return the model's names of the modules at these sites, by the names of the places."""
    names = {id(module): name for name, module in backbone.model.named_modules()}
    return {place.name: names[id(place.output_module)] for site in sites for place in backbone.modules_at(site)}


def other_norms(backbone: Backbone, values: Mapping[str, Tensor], *, first: int) -> dict[str, Tensor]:
    """Return norm weights whose output is m times the original plus c.

    Args:
        backbone: The backbone.
        values: The delta's values.
        first: Number of the edit that holds m; the next one holds c.
    """
    changed = {}
    for place, name in module_names(backbone, "norms").items():
        if f"{place}/{first}/vector" in values:
            gain, bias = (values[f"{place}/{number}/vector"] for number in (first, first + 1))
            changed[f"{name}.weight"] = gain * backbone.model.get_parameter(f"{name}.weight")
            changed[f"{name}.bias"] = gain * backbone.model.get_parameter(f"{name}.bias") + bias
    return changed


def unchanged(layer: int, entered: Tensor, outputs: Tensor) -> Tensor:
    return outputs


def written_out(
    backbone: Backbone,
    *,
    attn: Change = unchanged,
    ffn: Change = unchanged,
    heads: Change = unchanged,
    norm: Callable[[str, Tensor], Tensor] = lambda place, output: output,
    prefix: Callable[[int], tuple[Tensor, Tensor]] | None = None,
    before: int = 0,
) -> Tensor:
    """Compute BERT's layers explicitly, post-norm as in Vaswani et al. (2017), with hooks for changes.

    Args:
        backbone: A backbone with BERT's modules.
        attn: Changes the attention block's output, by layer number, input and output.
        ffn: Changes the feed-forward block's output likewise.
        heads: Changes the concatenated outputs of the heads, given the queries.
        norm: Changes the output of a norm, by the name of its place.
        prefix: Returns keys and values [P, D] to prepend in a layer.
        before: Number of positions before those of the texts.
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
        visible = mask
        if prefix:
            key, value = (
                torch.cat((rows.expand(len(x), -1, -1), states), dim=1)
                for rows, states in zip(prefix(n), (key, value), strict=True)
            )
            visible = F.pad(mask, (key.shape[1] - mask.shape[1], 0), value=True)
        scores = split(query) @ split(key).mT / (x.shape[-1] // count) ** 0.5
        weights = scores.masked_fill(~visible[:, None, None], float("-inf")).softmax(dim=-1)
        mixed = heads(n, query, (weights @ split(value)).transpose(1, 2).flatten(2))
        x = layer.attention.output.LayerNorm(x + attn(n, x, layer.attention.output.dense(mixed)))
        x = norm(f"layer.{n}.norm.attn", x)
        x = layer.output.LayerNorm(x + ffn(n, x, layer.output.dense(F.gelu(layer.intermediate.dense(x)))))
        x = norm(f"layer.{n}.norm.ffn", x)
    return x
