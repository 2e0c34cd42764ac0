"""Attached deltas: prepended keys, values and tokens, and edited inputs, against second computations per family."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from continual.backbones.backbone import Backbone
from continual.backbones.fingerprint import fingerprint
from continual.backbones.sites import Place
from continual.deltas import Concatenate, Delta, Edit, Multiply, Reads, attached
from continual.deltas.protocols import IdentityAtInit, Values
from continual.features.pooling import encode
from continual.features.tokens import pad, tokenize
from tests.helpers.references import written_out_attention
from tests.helpers.tiny_tasks import delta_of_edits, tiny_backbone

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave"]
PREFIX = 3


@dataclass(frozen=True)
class Drawn:
    """A random tensor [shape, d_out] that does not depend on the input."""

    shape: tuple[int, ...]
    identity: IdentityAtInit = "none"

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"drawn": torch.randn(*self.shape, place.d_out, generator=generator)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        return values["drawn"]


def in_front(site: str) -> Edit:
    """Return an edit that prepends keys and values to those of an attention."""
    return Edit(site, Drawn((2, PREFIX)), Reads.OUTPUT, Concatenate())


TOKENS = Edit("tokens", Drawn((PREFIX,)), Reads.OUTPUT, Concatenate())


@pytest.fixture
def whole(backbone: Backbone) -> Backbone:
    return replace(backbone, generates=True)


def batch_of(backbone: Backbone) -> dict[str, Tensor]:
    return pad(backbone, tokenize(backbone, TEXTS, max_length=32), range(len(TEXTS)))


@torch.no_grad()
def run(backbone: Backbone, delta: Delta | None = None) -> Tensor:
    """Run every stack that edits may change; the outputs at the texts' tokens."""
    batch = batch_of(backbone)
    with attached(backbone, delta):
        if not backbone.generates or backbone.family.decoder is None:
            return text_states(backbone.hidden_states(batch), batch)
        return text_states(
            backbone.language_model(**batch, decoder_input_ids=batch["input_ids"], use_cache=False).logits, batch
        )


def text_states(states: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return states[batch["attention_mask"].bool()]


def attends(backbone: Backbone) -> Delta:
    return delta_of_edits(backbone, in_front("attn.kv"))


def test_prepended_keys_and_values_share_the_texts_softmax(whole: Backbone) -> None:
    delta = attends(whole)
    actual = run(whole, delta)
    prefixes = {
        id(place.output_module): delta.values[f"{place.name}/0/drawn"].unbind() for place in whole.modules_at("attn.kv")
    }
    with written_out_attention(whole, prefixes):
        expected = run(whole)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(actual, run(whole), atol=1e-2)


@pytest.mark.parametrize(
    "kind", ["gpt2", "opt", "opt-narrow", "llama", "qwen3", "smollm3", "phi3", "olmo2", "qwen3_moe", "gpt_neox"]
)
@torch.no_grad()
def test_prepended_keys_and_values_equal_a_filled_cache(kind: str) -> None:
    backbone = tiny_backbone(kind)
    delta, batch, cache = attends(backbone), batch_of(backbone), DynamicCache()
    for layer, place in enumerate(backbone.modules_at("attn.kv")):
        key, value = delta.values[f"{place.name}/0/drawn"]
        heads = getattr(backbone.model.config, "num_key_value_heads", 4)
        cache.update(
            *(rows.view(PREFIX, heads, -1).transpose(0, 1).expand(len(TEXTS), -1, -1, -1) for rows in (key, value)),
            layer,
        )
    mask = F.pad(batch["attention_mask"], (PREFIX, 0), value=1)
    positions = torch.arange(batch["input_ids"].shape[1]).expand(len(TEXTS), -1)
    expected = backbone.model(
        input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions, past_key_values=cache
    ).last_hidden_state
    torch.testing.assert_close(run(backbone, delta), text_states(expected, batch), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prepended_tokens_equal_prepended_embeddings(whole: Backbone) -> None:
    delta, batch = delta_of_edits(whole, TOKENS), batch_of(whole)
    assert len(whole.modules_at("tokens")) == (2 if whole.family.decoder else 1)
    for place in whole.modules_at("tokens"):
        front = delta.values[f"{place.name}/0/drawn"].expand(len(TEXTS), -1, -1)
        vectors = torch.cat((front, place.input_module(batch["input_ids"])), dim=1)
        if not place.name.startswith("decoder"):  # which scales what it is given
            vectors = vectors * getattr(place.output_module, "embed_scale", 1.0)
        inputs = {"attention_mask": F.pad(batch["attention_mask"], (PREFIX, 0), value=1), "inputs_embeds": vectors}
        if "token_type_ids" in batch:
            inputs["token_type_ids"] = F.pad(batch["token_type_ids"], (PREFIX, 0))
        expected = place.output_module(**inputs).last_hidden_state[:, PREFIX:]
        with attached(whole, delta):
            actual = place.output_module(**batch).last_hidden_state
        torch.testing.assert_close(text_states(actual, batch), text_states(expected, batch), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(
            text_states(actual, batch), text_states(place.output_module(**batch).last_hidden_state, batch), atol=1e-2
        )


@torch.no_grad()
def test_a_language_models_logits_leave_prepended_tokens_out(writer: Backbone) -> None:
    """The head sees only the text's states, whether the model is called by position or by keyword."""
    batch = batch_of(writer)
    targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with attached(writer, delta_of_edits(writer, TOKENS)):
        output = writer.language_model(**batch, labels=targets)
    assert output.logits.shape[:2] == batch["input_ids"].shape
    assert output.loss.isfinite()
    assert not torch.allclose(output.logits, writer.language_model(**batch, labels=targets).logits, atol=1e-2)


EDITS = {"attention": in_front("attn.kv"), "tokens": TOKENS}


@pytest.fixture(params=EDITS)
def edit(request: pytest.FixtureRequest) -> Edit:
    return EDITS[request.param]


def test_a_row_in_a_batch_equals_the_row_alone(backbone: Backbone, edit: Edit) -> None:
    delta = delta_of_edits(backbone, edit)
    texts = [*TEXTS, "", "purr " * 25]
    together = encode(backbone, tokenize(backbone, texts, max_length=32), delta=delta)
    for text, vector in zip(texts, together, strict=True):
        alone = encode(backbone, tokenize(backbone, [text], max_length=32), delta=delta)[0]
        torch.testing.assert_close(vector, alone, rtol=1e-4, atol=1e-5)


def test_detaching_is_exact_to_the_bit(whole: Backbone, edit: Edit) -> None:
    before, delta = run(whole), delta_of_edits(whole, edit)
    assert not torch.equal(run(whole, delta), before)
    with pytest.raises(IndexError), attached(whole, delta):
        whole.hidden_states({"input_ids": torch.full((1, 2), 10**6)})
    assert torch.equal(run(whole), before)
    assert fingerprint(whole.base_module) == whole.fingerprint


def test_every_prepended_value_takes_a_gradient(whole: Backbone, edit: Edit) -> None:
    delta, batch = delta_of_edits(whole, edit).trainable(torch.device("cpu")), batch_of(whole)
    with attached(whole, delta):
        if whole.language_model is None:
            torch.autograd.backward(text_states(whole.hidden_states(batch), batch).square().sum())
        else:
            whole.language_model(**batch, labels=batch["input_ids"]).loss.backward()
    gradients = {key: value.grad for key, value in delta.values.items()}
    assert [key for key, grad in gradients.items() if grad is None or not grad.abs().amax(-1).all()] == []


@torch.no_grad()
def test_two_prepending_edits_both_take_effect(backbone: Backbone, edit: Edit) -> None:
    single, two = (run(backbone, delta_of_edits(backbone, *edits)) for edits in ((edit,), (edit, edit)))
    assert single.shape == two.shape
    assert not torch.allclose(single, two, atol=1e-3)


def generated(backbone: Backbone, delta: Delta, batch: dict[str, Tensor], **arguments: Any) -> list[list[int]]:
    start = batch["input_ids"].shape[1] if backbone.architecture == "causal" else 1
    with attached(backbone, delta):
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 1, **arguments}
        return [row[start:] for row in backbone.language_model.generate(**batch, **options).tolist()]


def test_generation_with_a_cache_equals_generation_without(writer: Backbone, edit: Edit) -> None:
    delta = delta_of_edits(writer, edit)
    for text in TEXTS:
        batch = pad(writer, tokenize(writer, [text], max_length=16), [0])
        assert generated(writer, delta, batch) == generated(writer, delta, batch, use_cache=False)


def test_generation_in_a_batch_equals_generation_alone(writer: Backbone, edit: Edit) -> None:
    """Padding is on the left in generation and on the right otherwise."""
    delta, tokens = delta_of_edits(writer, edit), tokenize(writer, TEXTS, max_length=16)
    alone = [generated(writer, delta, pad(writer, tokens, [i])) for i in range(len(TEXTS))]
    together = pad(writer, tokens, range(len(TEXTS)))
    if writer.architecture == "causal":
        for i, length in enumerate(tokens.lengths):
            together = {key: on_the_left(rows, i, length) for key, rows in together.items()}
    assert generated(writer, delta, together) == [row for rows in alone for row in rows]


def on_the_left(rows: Tensor, i: int, length: int) -> Tensor:
    moved = rows.clone()
    moved[i] = rows[i].roll(rows.shape[1] - length)
    return moved


def test_the_input_of_a_module_can_be_edited(backbone: Backbone) -> None:
    """Doubling every inner activation equals doubling the last weight but not its bias."""
    twice = delta_of_edits(backbone, Edit("ffn.inner", Doubled(), Reads.INPUT, Multiply()))
    before = [place.weight.clone() for place in backbone.modules_at("ffn.out")]
    actual = run(backbone, twice)
    with torch.no_grad():
        for place in backbone.modules_at("ffn.out"):
            place.weight.mul_(2)
        expected = run(backbone)
        for place, weight in zip(backbone.modules_at("ffn.out"), before, strict=True):
            place.weight.copy_(weight)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Doubled(Drawn):
    shape: tuple[int, ...] = ()

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        assert values["drawn"].shape == inputs.shape[-1:]
        return torch.full_like(inputs, 2.0)
