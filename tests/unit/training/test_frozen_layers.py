"""Caching of the layers below the lowest edit: computed once for all epochs, with unchanged results."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from continual.backbones.backbone import Backbone
from continual.backbones.layers import encoder_layers
from continual.deltas import Add, Delta, Edit, Multiply, Reads, attached
from continual.deltas.edit import LayerFilter
from continual.deltas.forms import Bottleneck, Vector
from continual.kinds import Kind, kind_of_delta
from continual.kinds.classification import Classification
from continual.kinds.generation import Generation
from continual.kinds.regression import Regression
from continual.kinds.span import Span
from continual.kinds.template import TemplateClassification
from continual.serialization import deserialize, serialize
from continual.training.frozen_layers import (
    FrozenLayerCache,
    compute_states,
    count_unedited_layers,
    frozen_layer_cache,
    skip_first_layers,
)
from continual.training.objective import TrainingObjective, training_objective
from continual.training.state import TrainingState, from_tensors, to_tensors
from continual.training.training_run import TrainingResult, TrainingRun
from tasks import AnswerSpan, Budget, GenerationTarget, LabelledTexts, Template
from tests.conftest import backbone_of
from tests.helpers.tiny_models import TINY_CONFIGS
from tests.helpers.tiny_tasks import delta_of_edits, fresh_delta, prepared_rows

ROWS, EPOCHS = 12, 3
STAGES = {"parts": ["last_layer", {"name": "last_layer", "count": 1}]}
SKIPPING = [name for name in TINY_CONFIGS if name not in ("t5", "t5-gated", "mt5", "mpnet", "deberta-v2")]
"""Families of which layers can be left out: in the others the lowest layer, or a table, makes distances for all."""


@pytest.fixture(params=SKIPPING)
def skipping_backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(request.param)


@pytest.fixture
def _without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "checkpoint_dropout", lambda backbone: nullcontext())


def at_the_top(backbone: Backbone) -> Delta:
    """Return an adapter in the last feed-forward only."""
    form = Bottleneck(size=4, activation="gelu", initial_scale=1e-2)
    return delta_of_edits(backbone, Edit("ffn.out", form, Reads.OUTPUT, Add(), LayerFilter((-1,))))


def objective_of(backbone: Backbone, start: Delta, *, epochs: int = EPOCHS) -> TrainingObjective[list[int]]:
    return training_objective(
        backbone,
        kind_of_delta(start),
        prepared_rows(backbone, "mood", ROWS),
        validation=prepared_rows(backbone, "mood", 4, seed=1),
        budget=Budget(epochs=epochs, batch_size=4),
        metric="accuracy",
        seed=0,
    )


def learned(
    backbone: Backbone, start: Delta, objective: TrainingObjective[list[int]], *, state: TrainingState | None = None
) -> tuple[TrainingResult, Delta, list[bytes]]:
    """Train; the result, the final delta (best or not), and all checkpoints."""
    trained, checkpoints = [start], []

    def keep(state: TrainingState) -> None:
        trained.append(state.current.detached())
        checkpoints.append(serialize(*to_tensors(state)))

    result = TrainingRun(backbone, start, objective, learning_rate=1e-3, seed=3, resume_from=state, on_state=keep).run()
    return result, trained[-1], checkpoints


def projection_of(backbone: Backbone, layer: int) -> nn.Module:
    """Return the first projection of a layer."""
    modules = encoder_layers(backbone)[layer].modules()
    return next(module for module in modules if isinstance(module, nn.Linear | Conv1D))


@contextmanager
def counted(backbone: Backbone, layer: int = 0) -> Iterator[list[int]]:
    """Record the rows of each training pass that compute a projection of the first layer."""
    passes: list[int] = []

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not torch.is_inference_mode_enabled():
            passes.append(len(args[0]))

    with projection_of(backbone, layer).register_forward_pre_hook(count):
        yield passes


def test_the_number_of_layers_below_all_edits(bert: Backbone) -> None:
    def of(method: str, **settings: Any) -> int:
        return count_unedited_layers(bert, fresh_delta(bert, method, **settings).settings)

    assert [of("probe"), of("last_layer"), of("last_layer", count=2), of("lora")] == [2, 1, 0, 0]
    assert [of("prefix"), of("prompt"), of("full"), of("selective", share=1)] == [0, 0, 0, 0]
    assert count_unedited_layers(bert, at_the_top(bert).settings) == 1
    everywhere = Edit("norm.embed", Vector(1.0), Reads.OUTPUT, Multiply())
    assert count_unedited_layers(bert, delta_of_edits(bert, everywhere).settings) == 0


def test_a_decoders_edit_is_above_the_encoder() -> None:
    bart = replace(backbone_of("bart"), generates=True)
    assert count_unedited_layers(bart, at_the_top(bart).settings) == 2
    assert count_unedited_layers(backbone_of("t5"), at_the_top(backbone_of("t5")).settings) == 0


@pytest.mark.usefixtures("_without_dropout")
def test_caching_does_not_change_training(skipping_backbone: Backbone) -> None:
    """A text's states differ by rounding from batch to batch, and so do the results."""
    for start in (at_the_top(skipping_backbone), fresh_delta(skipping_backbone, "probe")):
        objective = objective_of(skipping_backbone, start)
        with counted(skipping_backbone) as passes:
            actual, last, _ = learned(skipping_backbone, start, objective)
        assert passes == [ROWS], "one pass before all epochs"
        with counted(skipping_backbone) as passes:
            expected, last_computed, _ = learned(skipping_backbone, start, replace(objective, loss_inputs=None))
        assert sum(passes) == EPOCHS * ROWS
        assert [epoch.loss for epoch in actual.curve[1:]] == pytest.approx(
            [epoch.loss for epoch in expected.curve[1:]], abs=1e-6
        )
        for first, second in zip(last.tensors().values(), last_computed.tensors().values(), strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("_without_dropout")
def test_gradients_are_the_same_and_stop_at_the_lowest_edit(skipping_backbone: Backbone) -> None:
    start, rows = at_the_top(skipping_backbone), prepared_rows(skipping_backbone, "mood", ROWS)
    cached, batch, outputs = compute_states(skipping_backbone, rows.tokens, layers=1), [5, 0, 7], []
    assert cached is not None
    top = projection_of(skipping_backbone, -1)
    entering: list[bool] = []
    for context in (nullcontext(), skip_first_layers(skipping_backbone, 1, cached)):
        delta = start.trainable(skipping_backbone.device)
        with context, attached(skipping_backbone, delta), top.register_forward_pre_hook(_noting(entering)):
            torch.autograd.backward(kind_of_delta(delta).loss(skipping_backbone, delta, rows, batch))
        outputs.append([tensor.grad for tensor in delta.tensors().values()])
    assert entering == [False, False], "no gradient is asked for below the edit"
    assert all(parameter.grad is None for parameter in skipping_backbone.base_module.parameters())
    for first, second in zip(*outputs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def _noting(entering: list[bool]) -> Any:
    return lambda module, args: entering.append(args[0].requires_grad)


@pytest.mark.usefixtures("_without_dropout")
@pytest.mark.parametrize(("method", "settings"), [("last_layer", {}), ("probe", {}), ("sequential", STAGES)])
def test_resumed_training_ends_the_same_to_the_bit(bert: Backbone, method: str, settings: dict[str, Any]) -> None:
    start = fresh_delta(bert, method, **settings)
    objective = objective_of(bert, start)
    whole, last, checkpoints = learned(bert, start, objective)
    for data in checkpoints[:-1]:
        with counted(bert) as passes:
            rest, last_of_rest, _ = learned(
                bert, start, objective, state=from_tensors(*deserialize(data, what="checkpoint"))
            )
        assert passes == [ROWS]
        assert rest.curve == whole.curve
        assert rest.delta.digest == whole.delta.digest
        assert last_of_rest.digest == last.digest


def test_layers_with_dropout_are_not_cached(bert: Backbone) -> None:
    rows, before = prepared_rows(bert, "mood", ROWS), torch.get_rng_state()
    assert compute_states(bert, rows.tokens, layers=1) is None, "its configuration has dropout"
    assert torch.equal(torch.get_rng_state(), before)
    start = fresh_delta(bert, "last_layer")
    objective = objective_of(bert, start)
    assert (
        learned(bert, start, objective)[1].digest
        == learned(bert, start, replace(objective, loss_inputs=None))[1].digest
    )


def test_a_configuration_without_dropout_is_enough() -> None:
    llama = backbone_of("llama")
    assert compute_states(llama, prepared_rows(llama, "mood", ROWS).tokens, layers=1) is not None


@pytest.mark.usefixtures("_without_dropout")
def test_states_beyond_the_memory_limit_are_not_cached(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = prepared_rows(bert, "mood", ROWS).tokens
    size = (1 + sum(len(ids) for ids in {*tokens.ids})) * bert.hidden_size * 4
    for max_bytes, is_cached in ((size, True), (size - 1, False)):
        monkeypatch.setattr("continual.training.frozen_layers.MAX_CACHE_BYTES", max_bytes)
        assert (compute_states(bert, tokens, layers=1) is not None) == is_cached
    start = at_the_top(bert)
    with counted(bert) as passes:
        learned(bert, start, objective_of(bert, start))
    assert sum(passes) == EPOCHS * ROWS


@pytest.mark.usefixtures("_without_dropout")
def test_a_single_epoch_is_not_cached(bert: Backbone) -> None:
    start = at_the_top(bert)
    with counted(bert) as passes:
        learned(bert, start, objective_of(bert, start, epochs=1))
    assert passes == [4, 4, 4]


@pytest.mark.usefixtures("_without_dropout")
def test_an_uncached_text_is_computed(bert: Backbone) -> None:
    rows, other_rows = prepared_rows(bert, "mood", ROWS), prepared_rows(bert, "place", 4)
    delta = fresh_delta(bert, "probe")
    kind = kind_of_delta(delta)
    cache = frozen_layer_cache(bert, delta, lambda: rows.tokens)
    assert cache is not None
    expected = kind.loss(bert, delta, other_rows, range(4))
    with cache.use_cache(), counted(bert) as passes:
        assert torch.equal(kind.loss(bert, delta, other_rows, range(4)), expected)
        kind.loss(bert, delta, rows, range(4))
    assert passes == [4]


@pytest.mark.usefixtures("_without_dropout")
def test_the_backbone_is_as_it_was(skipping_backbone: Backbone) -> None:
    tokens = prepared_rows(skipping_backbone, "mood", 4).tokens
    modules = [
        (vars(module).keys(), dict(module._forward_pre_hooks)) for module in skipping_backbone.base_module.modules()
    ]
    with FrozenLayerCache(skipping_backbone, 1, lambda: tokens).use_cache():
        pass
    assert [(vars(m).keys(), dict(m._forward_pre_hooks)) for m in skipping_backbone.base_module.modules()] == modules


@pytest.mark.usefixtures("_without_dropout")
def test_split_batches_use_the_cache_too(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    start, real = at_the_top(bert), Classification.head_loss

    def small(*args: Any) -> Tensor:
        if len(args[-1]) > 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args)

    monkeypatch.setattr(Classification, "head_loss", small)
    with counted(bert) as passes:
        learned(bert, start, objective_of(bert, start))
    assert passes == [ROWS]


TEXTS = ("purr meow", "wave", "the sea of honey", "one coral")
WORDINGS = tuple(GenerationTarget(text, (text,)) for text in ("cat", "tide sail coral", "a", "of the"))
QUOTES = tuple((AnswerSpan(text.split()[0], 0),) for text in TEXTS)
TEMPLATE = Template(text="{{ text }} the {{ mask }} of", words={"bad": "awful", "good": "superb"})
EVERY: list[tuple[Kind[Any], LabelledTexts, str]] = [
    (Regression(0.0, 1.0), LabelledTexts(TEXTS, (1.0, 2.0, 0.5, 3.0)), "bert"),
    (Span(12), LabelledTexts(tuple(("the", text) for text in TEXTS), QUOTES), "bert"),
    (Generation(8), LabelledTexts(TEXTS, WORDINGS), "llama"),
    (Generation(8), LabelledTexts(TEXTS, WORDINGS), "bart"),
    (TemplateClassification(TEMPLATE), LabelledTexts(TEXTS, ("bad", "good", "bad", "good")), "llama"),
    (TemplateClassification(TEMPLATE), LabelledTexts(TEXTS, ("bad", "good", "bad", "good")), "bart"),
]


@pytest.mark.parametrize(("kind", "rows", "name"), EVERY, ids=lambda value: type(value).__name__)
@pytest.mark.usefixtures("_without_dropout")
def test_every_kind_declares_its_inputs(kind: Kind[Any], rows: LabelledTexts, name: str) -> None:
    backbone = replace(backbone_of(name), generates=kind.generates)
    delta = replace(fresh_delta(backbone, "probe"), head=kind.zero_head(backbone))
    prepared = kind.prepare(backbone, rows, max_length=32)
    expected = kind.loss(backbone, delta, prepared, range(4))
    cache = frozen_layer_cache(backbone, delta, lambda: kind.loss_inputs(backbone, prepared))
    assert cache is not None
    with cache.use_cache(), counted(backbone) as passes:
        torch.testing.assert_close(kind.loss(backbone, delta, prepared, range(4)), expected, rtol=1e-5, atol=1e-6)
        kind.loss(backbone, delta, prepared, [2, 0])
    assert passes == []
