"""The contract of every method on the families: exactness, gradients, storage, determinism and refusals."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from torch import Tensor, nn

from continual.backbones.backbone import Backbone
from continual.backbones.fingerprint import fingerprint
from continual.backbones.readout import Readout
from continual.deltas import METHODS, Delta, attached, load_delta, method_settings
from continual.errors import DeltaError, MethodError
from continual.features.pooling import pooled_features
from continual.features.tokens import pad, tokenize
from continual.training.training_run import TrainingResult, train
from tasks import Budget, Method
from tests.conftest import backbone_of
from tests.helpers.method_pairs import ARRANGEMENTS, every_method
from tests.helpers.tiny_tasks import (
    REQUIRED_SETTINGS,
    fresh_delta,
    head_of,
    labels_of,
    logits,
    perturbed_delta,
    prepared_rows,
    tiny_backbone,
)

LEFT_OUT = {"modernbert": {"norm.attn"}}  # a site whose module is an identity in the lowest layer
TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave"]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=ARRANGEMENTS)
def arrangement(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(request.param)


# A family of each architecture, in turn, for what takes a training; `test_every_family_is_trained` has the others.
one_architecture = pytest.mark.parametrize(
    ("family", "method"), [*zip(cycle(("bert", "llama", "t5")), METHODS, strict=False)]
)


@pytest.fixture
def trainee(family: str) -> Backbone:
    return backbone_of(family)


@pytest.fixture
def batch(backbone: Backbone) -> dict[str, Tensor]:
    return pad(backbone, tokenize(backbone, TEXTS, max_length=32), range(len(TEXTS)))


@torch.no_grad()
def hidden(backbone: Backbone, batch: dict[str, Tensor], delta: Delta | None = None) -> Tensor:
    with attached(backbone, delta):
        return backbone.hidden_states(batch)


def trained(backbone: Backbone, method: str, task: str = "mood", *, seed: int = 0) -> TrainingResult:
    """Train for one epoch of two steps, at a learning rate that moves every tensor."""
    return train(
        backbone,
        fresh_delta(backbone, method, task=task, seed=seed),
        rows=prepared_rows(backbone, task, 8),
        validation=prepared_rows(backbone, task, 4, seed=1),
        budget=Budget(epochs=2, batch_size=4, learning_rate=1e-2),
        metric="accuracy",
        seed=seed,
    )


@every_method
def test_a_fresh_delta_is_the_identity_as_declared(backbone: Backbone, method: str, batch: dict[str, Tensor]) -> None:
    delta = fresh_delta(backbone, method)
    base, inside = hidden(backbone, batch), hidden(backbone, batch, delta)
    if delta.settings.identity == "exact":
        assert torch.equal(inside, base)
    else:
        assert not torch.equal(inside, base)
        assert ((inside - base).abs().mean() < 0.01 * base.abs().mean()) == (delta.settings.identity == "near")


@every_method
def test_a_learned_delta_changes_the_output(backbone: Backbone, method: str, batch: dict[str, Tensor]) -> None:
    changed = hidden(backbone, batch, with_values(perturbed_delta(backbone, method)))
    assert not torch.allclose(changed, hidden(backbone, batch))


@every_method
def test_only_the_delta_takes_gradients(backbone: Backbone, method: str, batch: dict[str, Tensor]) -> None:
    gradients: dict[str, Tensor] = {}
    for stage in range(perturbed_delta(backbone, method).settings.stages):
        delta = perturbed_delta(backbone, method).trainable(torch.device("cpu"), stage)
        assert_only_delta_takes_gradients(backbone, delta, batch)
        gradients |= {name: tensor.grad for name, tensor in delta.tensors().items() if tensor.grad is not None}
    frozen = {key for key in delta.values if key.rpartition("/")[2].startswith(("basis.", "mean."))}
    assert gradients.keys() == delta.tensors().keys() - frozen, "every other tensor learns in one stage or another"
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []
    # A key's bias moves all scores of a query alike, so its exact gradient is zero; all others are clearly not.
    assert {name for name, gradient in gradients.items() if gradient.abs().max() < 1e-5} <= {
        name for name in gradients if ".attn.k/" in name
    }


def assert_only_delta_takes_gradients(backbone: Backbone, delta: Delta, batch: dict[str, Tensor]) -> None:
    named = {name: id(parameter) for name, parameter in backbone.model.named_parameters()}
    keys, modules = list(backbone.model.state_dict()), [id(module) for module in backbone.model.modules()]
    with attached(backbone, delta):
        assert {name: id(parameter) for name, parameter in backbone.model.named_parameters()} == named
        assert list(backbone.model.state_dict()) == keys
        assert [id(module) for module in backbone.model.modules()] == modules
        head = head_of(delta)
        torch.autograd.backward(head(pooled_features(backbone, batch, head.readout)).square().sum())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


@every_method
def test_detaching_restores_the_backbone_to_the_bit(backbone: Backbone, method: str, batch: dict[str, Tensor]) -> None:
    base, delta = hidden(backbone, batch), perturbed_delta(backbone, method)
    hidden(backbone, batch, delta)
    assert torch.equal(hidden(backbone, batch), base)
    with pytest.raises(IndexError), attached(backbone, delta):
        backbone.hidden_states({**batch, "input_ids": batch["input_ids"] + 10**6})
    assert torch.equal(hidden(backbone, batch), base)
    assert fingerprint(backbone.base_module) == backbone.fingerprint


def test_a_refused_delta_leaves_no_hook_behind(arrangement: Backbone, method: str) -> None:
    batch = pad(arrangement, tokenize(arrangement, TEXTS, max_length=32), range(len(TEXTS)))
    base = hidden(arrangement, batch)
    with pytest.raises(DeltaError):
        hidden(arrangement, batch, with_one_more(perturbed_delta(arrangement, method)))
    assert torch.equal(hidden(arrangement, batch), base)


@every_method
def test_bfloat16_stays_bfloat16_and_near_float32(backbone: Backbone, method: str, batch: dict[str, Tensor]) -> None:
    delta, low = fresh_delta(backbone, method), replace(backbone, dtype=torch.bfloat16)
    plain, inside = types_of_states(low, batch, None), types_of_states(low, batch, delta)
    assert inside == plain
    with attached(backbone, delta), torch.no_grad():
        exact, actual = (pooled_features(model, batch, Readout("mean")) for model in (backbone, low))
    assert (actual - exact).norm() < 0.05 * exact.norm()


def types_of_states(backbone: Backbone, batch: dict[str, Tensor], delta: Delta | None) -> dict[str, torch.dtype]:
    """Return the dtype of the tensor that each module returns."""
    types: dict[str, torch.dtype] = {}
    modules = {name: module for name, module in backbone.model.named_modules() if not list(module.children())}
    with attached(backbone, delta), ExitStack() as undo, torch.no_grad():
        for name, module in modules.items():

            def note(_: nn.Module, __: object, output: object, name: str = name) -> None:
                if isinstance(output, Tensor):  # not the sines and cosines of a rotary embedding
                    types[name] = output.dtype

            undo.callback(module.register_forward_hook(note).remove)
        pooled_features(backbone, batch, Readout("mean"))
    return types


@every_method
def test_every_layer_has_its_own_values(backbone: Backbone, method: str) -> None:
    delta = fresh_delta(backbone, method)
    if any(edit.where for edit in delta.settings.edits()):
        pytest.skip(f"{method} chooses among the layers")
    by_layer = [
        {key.split(".", 2)[2] for key in delta.values if key.startswith(f"layer.{n}.")}
        for n in range(backbone.num_layers)
    ]
    some = {name for name, site in backbone.family.stack.sites.items() if site.layers is not None}
    assert {key.split("/")[0] for key in by_layer[1] ^ by_layer[0]} <= LEFT_OUT.get(backbone.family.name, some)


def test_a_delta_survives_safetensors(arrangement: Backbone, method: str) -> None:
    delta, tokens = perturbed_delta(arrangement, method), tokenize(arrangement, TEXTS, max_length=32)
    back = load_delta(delta.to_bytes())
    assert back.to_bytes() == delta.to_bytes()
    assert back.digest == delta.digest
    assert (back.method, back.settings, back.backbone) == (delta.method, delta.settings, delta.backbone)
    assert (head_of(back).labels, head_of(back).readout) == (head_of(delta).labels, head_of(delta).readout)
    assert torch.equal(logits(arrangement, back, tokens), logits(arrangement, delta, tokens))


@one_architecture
def test_training_moves_a_copy_and_never_its_start_nor_another_delta(trainee: Backbone, method: str) -> None:
    other_deltas = [perturbed_delta(trainee, name) for name in {"lora", "prefix", "layer_norm", method}]
    tokens = tokenize(trainee, TEXTS, max_length=32)
    before = [(delta.digest, logits(trainee, delta, tokens)) for delta in other_deltas]
    start, rows = fresh_delta(trainee, method, task="animals"), prepared_rows(trainee, "animals", 18)
    digest = start.digest
    budget = Budget(epochs=5, batch_size=6, learning_rate=2e-2)
    result = train(trainee, start, rows=rows, validation=rows, budget=budget, metric="accuracy", seed=0)
    assert start.digest == digest
    assert not any(tensor.requires_grad for tensor in start.tensors().values())
    first, last = result.curve[1].loss, result.curve[-1].loss
    assert first is not None
    assert last is not None
    assert last < first
    assert result.score > result.curve[0].score, "a random head is improved on, where it is trained"
    assert result.delta.digest != digest
    assert not any(tensor.requires_grad for tensor in result.delta.tensors().values())
    for other_delta, (other_digest, answers) in zip(other_deltas, before, strict=True):
        assert other_delta.digest == other_digest
        assert torch.equal(logits(trainee, other_delta, tokens), answers)
    assert fingerprint(trainee.base_module) == trainee.fingerprint


@one_architecture
def test_training_is_repeatable_to_the_bit(trainee: Backbone, method: str) -> None:
    first, again = trained(trainee, method), trained(trainee, method)
    assert first.delta.digest == again.delta.digest
    assert first.curve == again.curve
    assert trained(trainee, method, seed=1).curve != first.curve


@one_architecture
def test_training_from_a_stored_delta_is_repeatable_to_the_bit(trainee: Backbone, method: str) -> None:
    """A file stores tensors in no reliable order, and gradient clipping sums over them."""
    steep = perturbed_delta(trainee, method).map(lambda tensor: 3 * tensor)  # gradients large enough to be clipped
    data = steep.to_bytes()
    rows, validation = prepared_rows(trainee, "mood", 8), prepared_rows(trainee, "mood", 4)
    budget = Budget(epochs=1, batch_size=4, learning_rate=1e-2)
    results = {
        train(
            trainee, load_delta(data), rows=rows, validation=validation, budget=budget, metric="accuracy", seed=0
        ).curve
        for _ in range(2)
    }
    assert len(results) == 1
    assert len({tuple(load_delta(data).values) for _ in range(6)}) == 1


@pytest.mark.parametrize("method", ["lora", "prefix", "full"])
def test_every_family_is_trained(backbone: Backbone, method: str) -> None:
    first, again = trained(backbone, method), trained(backbone, method)
    assert first.delta.digest == again.delta.digest
    assert first.curve == again.curve
    assert fingerprint(backbone.base_module) == backbone.fingerprint


def test_equal_seeds_give_equal_starts(arrangement: Backbone, method: str) -> None:
    assert fresh_delta(arrangement, method, seed=3).digest == fresh_delta(arrangement, method, seed=3).digest


def with_values(delta: Delta) -> Delta:
    if not delta.values:
        pytest.skip(f"{delta.method} has no values")
    return delta


def without_one(delta: Delta) -> Delta:
    key = sorted(with_values(delta).values)[-1]
    return replace(delta, values={name: value for name, value in delta.values.items() if name != key})


def with_one_more(delta: Delta) -> Delta:
    return replace(delta, values={**delta.values, "layer.9.attn.q/0/A": torch.zeros(1)})


def with_other_shape(delta: Delta) -> Delta:
    key = sorted(with_values(delta).values)[0]
    return replace(delta, values={**delta.values, key: torch.zeros(*delta.values[key].shape, 2)})


def of_another_backbone(delta: Delta) -> Delta:
    return replace(delta, backbone="0" * 64)


def with_narrow_head(delta: Delta) -> Delta:
    return replace(delta, head=replace(head_of(delta), weight=head_of(delta).weight[:, 1:]))


def with_too_few_labels(delta: Delta) -> Delta:
    return replace(delta, head=replace(head_of(delta), labels=head_of(delta).labels[1:]))


SPOILED: dict[Callable[[Delta], Delta], str] = {
    without_one: "missing tensors",
    with_one_more: "layer.9.attn.q/0/A",
    with_other_shape: "shapes",
    of_another_backbone: "000000000000",
    with_narrow_head: "head",
    with_too_few_labels: "label",
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_an_incompatible_delta_is_refused(bert: Backbone, method: str, spoil: Callable[[Delta], Delta]) -> None:
    delta = spoil(perturbed_delta(bert, method))
    with pytest.raises(DeltaError, match=SPOILED[spoil]):
        logits(bert, delta, tokenize(bert, TEXTS, max_length=32))


def test_a_delta_of_another_random_backbone_is_refused(arrangement: Backbone, method: str) -> None:
    another = tiny_backbone(arrangement.name.removeprefix("tiny-"), seed=1)
    with (
        pytest.raises(DeltaError, match="learned on backbone"),
        attached(another, perturbed_delta(arrangement, method)),
    ):
        pass


def test_an_unknown_setting_is_refused_naming_the_valid_ones(method: str) -> None:
    with pytest.raises(MethodError, match="zzz") as caught:
        method_settings(Method.model_validate({"name": method, "zzz": 1}))
    fields: Mapping[str, object] = METHODS[method].model_fields
    assert all(name in str(caught.value) for name in fields)


def test_an_unknown_method_is_refused_naming_the_closest(method: str) -> None:
    with pytest.raises(MethodError, match=f"did you mean '{method}'"):
        method_settings(Method(name=method + "x"))


def test_settings_survive_a_stream_file(method: str) -> None:
    settings = METHODS[method].model_validate(REQUIRED_SETTINGS.get(method, {}))
    assert method_settings(Method.model_validate({"name": method} | settings.model_dump(mode="json"))) == settings


def test_each_label_of_a_task_needs_a_row_of_the_head(arrangement: Backbone, method: str) -> None:
    tokens = tokenize(arrangement, TEXTS, max_length=32)
    delta = fresh_delta(arrangement, method, task="animals")
    assert logits(arrangement, delta, tokens).shape == (len(TEXTS), len(labels_of("animals")))
