"""Batched queries of many deltas: the same opinions as one query per delta, in fewer passes, for every kind."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM

from continual.backbones.backbone import Backbone, freeze
from continual.deltas import Delta
from continual.inference.delta_cache import DeltaCache
from continual.inference.opinions import DeltaQuery, FailedAnswer, query_delta, query_deltas
from continual.kinds import Kind, kind_metadata
from continual.kinds.classification import Classification
from continual.kinds.generation import Generation
from continual.kinds.span import Span
from continual.kinds.template import TemplateClassification
from continual.routing import FitStatistics, Opinion, fit_statistics
from tasks import Template, Text
from tests.conftest import backbone_of
from tests.helpers.tiny_models import POSITIONS
from tests.helpers.tiny_tasks import perturbed_delta

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave", "lemon one " * 4, "beak of the sea", "one"]
PASSAGES: list[Text] = [("the", f"{'purr ' * n}coral {'meow ' * (30 - n)}") for n in (0, 7, 29)]
PASSAGES += [("of", "wave"), "no passage"]
FEW = Template(text="{{ text }} the {{ mask }} of", words={"bad": "awful", "good": "superb"})
MORE = Template(text="it is {{ mask }} {{ text }}", words={"cat": "purr", "dog": "bark", "bird": "wing"})
METHODS: Mapping[str, Mapping[str, Any]] = {"lora": {}, "prompt": {"length": 3}, "prefix": {"length": 5}, "adapter": {}}


def of_kind(backbone: Backbone, kind: Kind[Any], method: str, *, seed: int = 0, **settings: Any) -> Delta:
    """Return a delta as after training; the head, where the kind has one, is random."""
    delta, head = perturbed_delta(backbone, method, seed=seed, **settings), kind.zero_head(backbone)
    if head is not None:
        draw = torch.Generator().manual_seed(seed)
        head = head.map(lambda tensor: torch.randn(tensor.shape, generator=draw))
    return replace(delta, kind=kind_metadata(kind), head=head)


def each_method(backbone: Backbone, *kinds: Kind[Any]) -> dict[str, Delta]:
    """Return a delta of each method; the kinds take turns."""
    chosen = zip(METHODS.items(), kinds * len(METHODS), strict=False)
    return {method: of_kind(backbone, kind, method, **settings) for (method, settings), kind in chosen}


def some_evidence(backbone: Backbone) -> FitStatistics:
    draw = torch.Generator().manual_seed(0)
    rows, held_out = (torch.randn(n, backbone.hidden_size, generator=draw) for n in (40, 20))
    return fit_statistics(
        rows, torch.arange(40) % 2, count=2, held_out=held_out, log_probs=torch.randn(20, generator=draw)
    )


@contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """Record the number of rows of each forward pass while the block runs."""
    passes: list[int] = []
    reader = backbone.modules_at("tokens")[0].output_module
    handle = reader.register_forward_hook(lambda module, args, read: passes.append(len(read.last_hidden_state)))
    yield passes
    handle.remove()


def same(actual: Opinion[Any], alone: Opinion[Any]) -> None:
    for answer, expected in zip(actual.answers, alone.answers, strict=True):
        assert answer.label == expected.label
        assert answer.score == pytest.approx(expected.score, abs=1e-4)
    torch.testing.assert_close(actual.fit, alone.fit, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(actual.excess_log_prob, alone.excess_log_prob, rtol=1e-3, atol=1e-3)


def compare(
    backbone: Backbone,
    deltas: dict[str, Delta],
    texts: list[Text],
    *,
    slots: int = 8,
    evidence: FitStatistics | None = None,
) -> tuple[list[int], list[int]]:
    """Check that deltas queried together and one by one give the same opinions; the row counts of both passes."""
    queries = {
        name: DeltaQuery(texts[number:] + texts[:number], POSITIONS, evidence) for number, name in enumerate(deltas)
    }
    with counted(backbone) as separate:
        alone = {name: query_delta(backbone, delta, queries[name]) for name, delta in deltas.items()}
    with counted(backbone) as shared:
        actual = query_deltas(backbone, DeltaCache(backbone, deltas.__getitem__, slots=slots), queries)
    for name, expected in alone.items():
        same(actual[name], expected)
    return shared, separate


def test_answers_are_generated_together(writer: Backbone) -> None:
    deltas = each_method(writer, Generation(3), Generation(12), Generation(7))
    shared, separate = compare(replace(writer, generates=False), deltas, list(TEXTS))
    assert max(shared) > len(TEXTS), "rows of several tasks are in one pass"
    assert len(shared) < len(separate)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("slots", [1, 2])
def test_fewer_slots_change_no_answer(name: str, slots: int) -> None:
    writer = replace(backbone_of(name), generates=True)
    deltas = each_method(writer, Generation(5), Generation(9))
    compare(backbone_of(name), deltas, list(TEXTS), slots=slots, evidence=some_evidence(writer))


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_texts_generated_together_fit_the_positions(name: str) -> None:
    """A long text with a short answer, a short one with a long answer, and deltas that add many tokens."""
    writer = replace(backbone_of(name), generates=True)
    deltas = {
        "reads": of_kind(writer, Generation(2), "lora"),
        "writes": of_kind(writer, Generation(POSITIONS // 2), "lora", seed=1),
        "adds": of_kind(writer, Generation(2), "prompt", length=25),
    }
    compare(backbone_of(name), deltas, ["wave", "lemon one " * 30])


def test_spans_share_passes_with_other_kinds_that_read_states(bert: Backbone) -> None:
    deltas = each_method(bert, Span(9), Span(4), Classification(("bad", "good")))
    shared, separate = compare(bert, deltas, list(PASSAGES), evidence=some_evidence(bert))
    rows = sum(separate)
    assert sum(shared) == rows
    assert len(shared) == -(-rows // 64) < len(separate)


@pytest.fixture(scope="module")
def masked(bert: Backbone) -> Backbone:
    torch.manual_seed(0)
    return freeze(BertForMaskedLM(bert.model.config), bert.tokenizer, name="masked", device="cpu", dtype="float32")


@pytest.mark.parametrize("name", ["masked", "gpt2", "llama", "t5", "bart"])
def test_template_masks_are_filled_together(name: str, masked: Backbone) -> None:
    backbone = masked if name == "masked" else backbone_of(name)
    deltas = each_method(replace(backbone, generates=True), TemplateClassification(FEW), TemplateClassification(MORE))
    shared, separate = compare(backbone, deltas, list(TEXTS[:4]))
    if backbone.architecture == "causal":  # the prompts in one pass, and one for each word of the longest list
        assert shared == [16] * 4
        assert sum(separate) == 2 * 4 * (3 + 4)
        return
    assert sum(shared) == sum(separate)
    assert len(shared) < len(separate)


def test_an_unmixable_delta_is_queried_alone_and_a_broken_delta_fails_alone() -> None:
    backbone = backbone_of("t5")
    writer, query = replace(backbone, generates=True), DeltaQuery(TEXTS, POSITIONS)
    deltas = each_method(writer, Generation(5)) | {"full": of_kind(writer, Generation(5), "full")}
    compare(backbone, deltas, list(TEXTS))
    for name in ("lora", "full"):
        values = dict(list(deltas[name].values.items())[1:])
        broken = deltas | {name: replace(deltas[name], values=values)}
        opinions = query_deltas(backbone, DeltaCache(backbone, broken.__getitem__), dict.fromkeys(broken, query))
        assert all(
            isinstance(answer, FailedAnswer) and "missing tensors" in answer.error
            for answer in opinions.pop(name).answers
        )
        for delta_name, opinion in opinions.items():
            same(opinion, query_delta(backbone, deltas[delta_name], query))
