"""Readouts: the states behind some layers are those of a shallower backbone, with and without deltas attached."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone, load_backbone
from continual.backbones.base_model import base_model
from continual.backbones.families import family_of
from continual.backbones.readout import Readout, keep_first_layers
from continual.deltas import attached
from continual.errors import DeltaError
from continual.features.pooling import encode, forward_pooled, pooled_features
from continual.features.random_features import candidate_readouts, frozen_features
from continual.features.tokens import Tokens, pad, tokenize
from tests.conftest import backbone_of
from tests.helpers.tiny_models import TINY_CONFIGS, WRITERS
from tests.helpers.tiny_tasks import head_of, perturbed_delta, save_backbone

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave"]
CAUSAL = tuple(kind for kind in WRITERS if TINY_CONFIGS[kind][1].endswith(("ForCausalLM", "LMHeadModel")))


@pytest.fixture(params=CAUSAL)
def causal(request: pytest.FixtureRequest) -> Backbone:
    """Return a tiny causal backbone of every family."""
    return backbone_of(request.param)


def tokens_of(backbone: Backbone) -> Tokens:
    return tokenize(backbone, TEXTS, max_length=32)


def batch_of(backbone: Backbone) -> dict[str, Tensor]:
    return pad(backbone, tokens_of(backbone), range(len(TEXTS)))


def shallower(backbone: Backbone, layers: int) -> Backbone:
    """Return a backbone that was made with fewer layers, and has the weights of those."""
    whole = backbone.language_model
    config = deepcopy(whole.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    model = type(whole)(config).eval()
    missing, _ = model.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    return replace(backbone, model=base_model(model), language_model=model, family=family_of(config))


def test_fewer_layers_are_a_shallower_backbone(causal: Backbone) -> None:
    batch, whole = batch_of(causal), causal.hidden_states(batch_of(causal))
    for layers in range(1, causal.num_layers):
        expected = shallower(causal, layers).hidden_states(batch)
        torch.testing.assert_close(causal.hidden_states(batch, layers=layers), expected, rtol=0, atol=1e-6)
        assert not torch.allclose(expected, whole, atol=1e-2)
    assert torch.equal(causal.hidden_states(batch, layers=causal.num_layers), whole)
    assert torch.equal(causal.hidden_states(batch), whole)


def test_one_pass_gives_the_states_of_every_depth(causal: Backbone) -> None:
    batch, depths = batch_of(causal), (1, causal.num_layers, None)
    together = causal.hidden_states_at(batch, depths)
    for depth in depths:
        assert torch.equal(together[depth], causal.hidden_states(batch, layers=depth))


@pytest.mark.parametrize("method", ["lora", "reft", "prompt", "prefix", "bitfit"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt-narrow"])
def test_a_delta_changes_the_layers_that_run(name: str, method: str) -> None:
    backbone = backbone_of(name)
    delta, batch = perturbed_delta(backbone, method), batch_of(backbone)
    reserved = replace(backbone, reserved_tokens=delta.settings.added_tokens)
    upper = {key: value for key, value in delta.values.items() if key.startswith("layer.1.")}
    other = replace(delta, values={**delta.values, **{key: value + 1 for key, value in upper.items()}})
    plain = reserved.hidden_states(batch, layers=1)
    with attached(reserved, delta):
        changed, whole = reserved.hidden_states(batch, layers=1), reserved.hidden_states(batch)
        together = reserved.hidden_states_at(batch, (1, None))
    with attached(reserved, other):
        assert torch.equal(reserved.hidden_states(batch, layers=1), changed)
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert torch.equal(together[1], changed)
    assert torch.equal(together[None], whole)


def test_a_failed_pass_leaves_the_layers_in_place() -> None:
    backbone = backbone_of("llama")
    expected = backbone.hidden_states(batch_of(backbone))
    no_token = torch.full_like(batch_of(backbone)["input_ids"], 10**6)
    with pytest.raises(IndexError):
        backbone.hidden_states({**batch_of(backbone), "input_ids": no_token}, layers=1)
    assert torch.equal(backbone.hidden_states(batch_of(backbone)), expected)


def test_gradients_of_one_pass_are_those_of_each_depth() -> None:
    backbone, batch = backbone_of("llama"), batch_of(backbone_of("llama"))

    def gradients(read: bool) -> list[Tensor]:
        delta = perturbed_delta(backbone, "lora").trainable(torch.device("cpu"))
        with attached(backbone, delta):
            if read:
                states = backbone.hidden_states_at(batch, (1, None))
                loss = torch.stack([states[depth].square().sum() for depth in (1, None)]).sum()
            else:
                loss = torch.stack(
                    [backbone.hidden_states(batch, layers=depth).square().sum() for depth in (1, None)]
                ).sum()
            torch.autograd.backward(loss)
        return [value.grad for value in delta.values.values() if value.grad is not None]

    torch.testing.assert_close(gradients(True), gradients(False), rtol=1e-4, atol=1e-4)


def test_frozen_features_take_every_candidate_on_the_way(causal: Backbone) -> None:
    tokens, candidates = tokens_of(causal), candidate_readouts(causal)
    assert {readout.pooling for readout in candidates} == {"last", "mean"}
    assert {readout.layers for readout in candidates} == {*range(1, causal.num_layers), None}
    features, plain = frozen_features(causal, tokens, readouts=candidates), frozen_features(causal, tokens)
    assert torch.equal(features.random_features, plain.random_features)
    for readout in candidates:
        alone = pooled_features(causal, pad(causal, tokens, range(len(TEXTS))), readout)
        torch.testing.assert_close(features.readouts[readout], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(features.readouts[Readout("mean")], plain.pooled, rtol=0, atol=1e-5)


def test_an_encoder_keeps_its_declared_pooling() -> None:
    for name in ("bert", "t5"):
        assert candidate_readouts(replace(backbone_of(name), pooling="cls")) == (Readout("cls"),)


def test_a_heads_layers_are_read_and_stored() -> None:
    backbone = backbone_of("llama")
    delta = perturbed_delta(backbone, "lora")
    shallow = replace(delta, head=replace(head_of(delta), pooling="last", layers=1))
    assert encode(backbone, tokens_of(backbone), delta=shallow).shape == (len(TEXTS), backbone.hidden_size)
    with attached(backbone, shallow):
        request = forward_pooled(backbone, tokens_of(backbone), Readout("last", 1))
        alone = request.gather(list(request.forward(backbone, request.items)))  # type: ignore[operator]
    torch.testing.assert_close(encode(backbone, tokens_of(backbone), delta=shallow), alone, rtol=0, atol=1e-5)
    assert "layers" not in delta.metadata()
    assert shallow.metadata()["layers"] == 1
    assert shallow.digest != delta.digest


def test_a_head_behind_more_layers_than_there_are_is_refused() -> None:
    backbone = backbone_of("llama")
    delta = perturbed_delta(backbone, "lora")
    deep = replace(delta, head=replace(head_of(delta), layers=3))
    with pytest.raises(DeltaError, match="behind 3 layers, and backbone 'tiny-llama' has 2"), attached(backbone, deep):
        pass


@pytest.mark.parametrize("kind", ["gpt2", "gemma3", "qwen3"])
def test_a_model_cut_to_its_first_layers_is_saved_as_such(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    backbone = backbone_of(kind)
    model = deepcopy(backbone.language_model)
    keep_first_layers(model, backbone.family.stack, 1)
    folder = save_backbone(replace(backbone, language_model=model), tmp_path_factory.mktemp("cut"))
    again = load_backbone(folder, device="cpu", dtype="float32")
    batch = batch_of(backbone)
    torch.testing.assert_close(again.hidden_states(batch), backbone.hidden_states(batch, layers=1), rtol=0, atol=1e-6)
    assert (again.num_layers, backbone.num_layers) == (1, 2)
