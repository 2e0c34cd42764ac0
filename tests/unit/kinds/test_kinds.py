"""Parts of each kind against second computations: closed-form starts, windows, losses, answers and metadata."""

import json
import random
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch.nn import functional as F
from transformers import BertForMaskedLM

from continual.backbones.backbone import Backbone, freeze
from continual.deltas import Delta, Head, attached, load_delta
from continual.errors import DeltaError
from continual.features.signature import compute_signature
from continual.features.tokens import pad
from continual.kinds import KINDS, ForwardContext, Kind, kind_metadata, kind_of_delta
from continual.kinds.classification import Classification
from continual.kinds.generation import Generation
from continual.kinds.regression import Regression, fit_ridge
from continual.kinds.span import Span
from continual.kinds.template import TemplateClassification
from continual.kinds.windows import NOT_IN_PASSAGE, split_into_windows
from tasks import AnswerSpan, GenerationTarget, LabelledTexts, Template
from tests.conftest import backbone_of
from tests.helpers.tiny_models import TINY_CONFIGS as BACKBONES
from tests.helpers.tiny_tasks import fresh_delta, perturbed_delta, prepared_rows, rows_of

TEMPLATE = Template(text="{{ text }} the {{ mask }} of", words={"bad": "awful", "good": "superb"})
EVERY: list[Kind[Any]] = [
    Classification(("bad", "good")),
    Regression(2.5, 1.5),
    Span(12),
    Generation(7),
    TemplateClassification(TEMPLATE),
]
FAST = sorted({"bert", "roberta", "gpt2", "t5"} & BACKBONES.keys())
WORDS = ["purr", "meow", "whisker", "kitten", "wave", "coral", "tide", "sail", "the", "of"]
PASSAGES = st.lists(st.sampled_from([*WORDS, "été", "x,y", "🦜"]), max_size=60).map(" ".join)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: type(kind).__name__)
def test_a_deltas_file_holds_its_kind(kind: Kind[Any], bert: Backbone) -> None:
    delta = replace(fresh_delta(bert, "lora"), kind=kind_metadata(kind), head=kind.zero_head(bert))
    back = load_delta(delta.to_bytes())
    assert kind_of_delta(back) == kind
    assert back.digest == delta.digest
    assert (back.head is None) == (kind.zero_head(bert) is None)
    assert delta.parameter_count == sum(tensor.numel() for tensor in delta.tensors().values())
    with attached(bert, back):
        pass
    assert json.loads(json.dumps(kind_metadata(kind))) == kind_metadata(kind)


def test_every_kind_is_tested() -> None:
    assert {type(kind) for kind in EVERY} == set(KINDS.values())


def test_a_classifications_metadata_is_unchanged(bert: Backbone) -> None:
    assert kind_metadata(EVERY[0]) == {}
    assert b"kind" not in fresh_delta(bert, "lora").to_bytes()


@pytest.mark.parametrize("metadata", [{"name": "zzz"}, {"name": "span"}, {"longest": 3}], ids=str)
def test_an_unknown_kind_is_refused(metadata: dict[str, object], bert: Backbone) -> None:
    with pytest.raises(DeltaError, match="none of classification, regression"):
        kind_of_delta(replace(fresh_delta(bert, "lora"), kind=metadata))


@pytest.mark.parametrize("strength", [0.01, 1.0, 10.0])
def test_ridge_equals_scikit_learns(strength: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64) * torch.tensor([1.0, 3, 0.1, 1, 1]) + 7
    y = x @ torch.randn(5, dtype=torch.float64) + 0.3 * torch.randn(40) + 3
    signature = compute_signature(torch.cat((x, y.unsqueeze(1)), dim=1), torch.zeros(40, dtype=torch.long), count=1)
    weight, bias = fit_ridge(signature, strength)
    centred = x - x.mean(dim=0)
    reference = Ridge(alpha=strength * float(centred.square().sum(dim=0).mean())).fit(x.numpy(), y.numpy())
    assert weight.squeeze(0).tolist() == pytest.approx(reference.coef_.tolist(), rel=1e-6)
    assert bias.item() == pytest.approx(reference.intercept_, rel=1e-6)


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e6])
def test_a_regression_does_not_depend_on_the_unit_of_its_numbers(bert: Backbone, unit: float) -> None:
    texts = rows_of("mood", 30).texts
    numbers = tuple(unit * (text.count("e") + 2.0) for text in map(str, texts))
    mean, deviation = torch.tensor(numbers).mean().item(), torch.tensor(numbers).std(correction=0).item()
    kind = Regression(mean, deviation)
    rows = kind.prepare(bert, LabelledTexts(texts, numbers), max_length=32)
    context = ForwardContext(bert, None, rows)
    start = kind.closed_form_start(context, context)
    assert start.head is not None
    answers = [answer.label for answer in kind.answers(bert, kind.outputs(context, start.head), rows)]
    errors = [((float(answer) - number) / deviation) ** 2 for answer, number in zip(answers, numbers, strict=True)]
    assert sum(errors) / 30 < 0.5
    assert -start.mean_quality == pytest.approx(sum(errors) / 30, rel=1e-3)
    delta = replace(fresh_delta(bert, "lora"), kind=kind_metadata(kind), head=start.head)
    with torch.no_grad(), attached(bert, delta):
        assert kind.loss(bert, delta, rows, range(30)).item() == pytest.approx(sum(errors) / 30, rel=1e-3)
    assert kind.misrouted_answers(rows.truth) == [mean] * 30


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=30)
@given(passage=PASSAGES, question=st.sampled_from(["the", "wave " * 30, ""]), length=st.integers(8, 40))
def test_windows_cover_the_whole_passage(name: str, passage: str, question: str, length: int) -> None:
    backbone = backbone_of(name)
    windows = split_into_windows(backbone, [("the", "wave"), (question, passage)], max_length=length)
    assert [w for window_indices in windows.row_windows for w in window_indices] == list(range(len(windows.spans)))
    assert all(windows.row_windows)
    assert all(len(ids) == len(span) <= length for ids, span in zip(windows.tokens.ids, windows.spans, strict=True))
    pieces = [span for w in windows.row_windows[1] for span in windows.spans[w].tolist() if span[0] != NOT_IN_PASSAGE]
    covered = {i for begin, end in pieces for i in range(begin, end)}
    assert covered >= {i for i, letter in enumerate(passage) if letter.isalnum() and letter.isascii()}


@pytest.mark.parametrize("name", FAST)
def test_answer_masks_are_at_the_answers(name: str) -> None:
    backbone, draw = backbone_of(name), random.Random(0)
    texts, targets = [], []
    for _ in range(20):
        words = draw.choices(WORDS, k=40)
        start_index = draw.randrange(38)
        passage, answer = " ".join(words), " ".join(words[start_index : start_index + 2])
        start = len(" ".join([*words[:start_index], ""]))
        texts.append(("the", passage))
        targets.append((AnswerSpan(answer, start), AnswerSpan("nowhere", None)))
    rows = Span(30).prepare(backbone, LabelledTexts(tuple(texts), tuple(targets)), max_length=24)
    assert rows.truth[0] == (targets[0][0].text, "nowhere")
    for row, window_indices in enumerate(rows.windows.row_windows):
        span, passage = targets[row][0], rows.passages[row]
        assert span.start is not None
        begins = {
            int(rows.windows.spans[w][t, 0])
            for w in window_indices
            for t in rows.answer_token_masks[w][:, 0].nonzero().flatten()
        }
        ends = {
            int(rows.windows.spans[w][t, 1])
            for w in window_indices
            for t in rows.answer_token_masks[w][:, 1].nonzero().flatten()
        }
        assert begins
        assert ends
        assert all(passage[begin : span.start + 1].strip() == span.text[:1] for begin in begins)
        assert ends == {span.start + len(span.text)}


def test_a_span_is_the_most_probable_and_its_loss_is_shared_by_all_windows(bert: Backbone) -> None:
    passage = " ".join(WORDS * 4)
    kind = Span(12)
    rows = kind.prepare(
        bert, LabelledTexts((("the", passage),), ((AnswerSpan("coral", passage.index("coral")),),)), max_length=20
    )
    window_indices = rows.windows.row_windows[0]
    assert len(window_indices) == 3
    torch.manual_seed(0)
    head = Head(torch.randn(2, bert.hidden_size), torch.randn(2), ("start", "end"), "mean")
    delta = replace(perturbed_delta(bert, "lora"), kind=kind_metadata(kind), head=head)
    with torch.no_grad(), attached(bert, delta):
        logits = [head(bert.hidden_states(pad(bert, rows.windows.tokens, [w]))[0]) for w in window_indices]
        loss = kind.loss(bert, delta, rows, [0])
    places = [
        (w, t) for w in window_indices for t in range(len(logits[w])) if rows.windows.spans[w][t, 0] != NOT_IN_PASSAGE
    ]
    total = torch.stack([logits[w][t] for w, t in places]).exp().sum(dim=0)
    right = [sum(logits[w][t, end].exp() for w, t in places if rows.answer_token_masks[w][t, end]) for end in range(2)]
    assert loss.item() == pytest.approx(-sum(float((right[end] / total[end]).log()) for end in range(2)), rel=1e-4)

    def chance(pair: tuple[tuple[int, int], tuple[int, int]]) -> float:
        (w, t), (v, u) = pair
        length = int(rows.windows.spans[v][u, 1] - rows.windows.spans[w][t, 0])
        return float(logits[w][t, 0] + logits[v][u, 1]) if w == v and 0 < length <= 12 else -torch.inf

    (w, t), (v, u) = max(product(places, places), key=chance)
    begin, end = int(rows.windows.spans[w][t, 0]), int(rows.windows.spans[v][u, 1])
    (answer,) = kind.answers(bert, kind.outputs(ForwardContext(bert, delta, rows), head), rows)
    assert answer.label == passage[begin:end]
    probability = (logits[w][t, 0].exp() / total[0] * logits[v][u, 1].exp() / total[1]).item()
    assert answer.score == pytest.approx(probability, rel=1e-4)


def test_a_passage_without_an_answer_token_has_zero_loss(bert: Backbone) -> None:
    kind = Span(12)
    rows = kind.prepare(bert, LabelledTexts((("the", " wave"),), ((AnswerSpan(" ", 0),),)), max_length=20)
    delta = replace(fresh_delta(bert, "lora"), kind=kind_metadata(kind), head=kind.zero_head(bert)).trainable(
        bert.device
    )
    with attached(bert, delta):
        loss = kind.loss(bert, delta, rows, [0])
    assert loss.item() == 0.0
    torch.autograd.backward(loss)


def writer(name: str) -> Backbone:
    return replace(backbone_of(name), generates=True)


def through(backbone: Backbone, kind: Kind[Any]) -> Delta:
    return replace(perturbed_delta(backbone, "lora"), kind=kind_metadata(kind), head=None)


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart", "llama"])
def test_an_answers_score_is_the_models_probability(name: str) -> None:
    backbone, kind = writer(name), Generation(5)
    rows = kind.prepare(backbone, LabelledTexts(("purr meow", "wave " * 60, ""), ()), max_length=32)
    assert rows.truth == ()
    delta = through(backbone, kind)
    outputs = kind.outputs(ForwardContext(backbone, delta, rows), None)
    answers = kind.answers(backbone, outputs, rows)
    assert outputs["tokens"].shape == (3, 5)
    for answer, tokens, prompt in zip(answers, outputs["tokens"].tolist(), rows.prompts, strict=True):
        ids = [token for token in tokens if token >= 0]
        assert answer.label == backbone.tokenizer.decode(ids, skip_special_tokens=True).strip()
        causal = backbone.architecture == "causal"
        with torch.no_grad(), attached(backbone, delta):
            if causal:
                logits = backbone.language_model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            else:
                labels = torch.tensor([ids])
                logits = backbone.language_model(torch.tensor([prompt]), labels=labels).logits[0]
        chance = F.log_softmax(logits, dim=1)[range(len(ids)), ids].mean().exp()
        assert answer.score == pytest.approx(chance.item(), rel=1e-3)
        if causal:
            assert len(prompt) + 5 <= backbone.longest_input


def test_only_a_targets_tokens_count_in_the_loss() -> None:
    backbone, kind = writer("gpt2"), Generation(9)
    targets = (GenerationTarget("wave coral", ("wave coral", "sail")), GenerationTarget("tide", ("tide",)))
    rows = kind.prepare(backbone, LabelledTexts(("purr", "meow whisker"), targets), max_length=32)
    assert rows.truth == (("wave coral", "sail"), ("tide",))
    assert all(target[-1] == backbone.tokenizer.eos_token_id for target in rows.targets)
    delta = through(backbone, kind)
    with torch.no_grad(), attached(backbone, delta):
        loss = kind.loss(backbone, delta, rows, [0, 1])
        sums = []
        for prompt, target in zip(rows.prompts, rows.targets, strict=True):
            logits = backbone.language_model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
            sums.append(F.cross_entropy(logits, torch.tensor(target), reduction="sum"))
    assert loss.item() == pytest.approx(float(sum(sums)) / sum(map(len, rows.targets)), rel=1e-4)


@pytest.fixture(scope="module")
def masked(bert: Backbone) -> Backbone:
    torch.manual_seed(0)
    return freeze(BertForMaskedLM(bert.model.config), bert.tokenizer, name="masked", device="cpu", dtype="float32")


def test_a_masked_model_scores_a_words_token(masked: Backbone) -> None:
    kind = TemplateClassification(TEMPLATE)
    rows = kind.prepare(masked, LabelledTexts(("purr [MASK] meow", "wave " * 50), ("bad", "good")), max_length=16)
    assert all(len(ids) <= 16 and ids.count(masked.tokenizer.mask_token_id) == 1 for ids in rows.cloze.prompts)
    assert masked.tokenizer.decode(rows.cloze.prompts[0]) == "[CLS] purr meow the [MASK] of [SEP]"
    assert masked.tokenizer.decode(rows.cloze.prompts[1]).endswith("wave the [MASK] of [SEP]")
    delta = through(masked, kind)
    logits = kind.outputs(ForwardContext(masked, delta, rows), None)["logits"]
    words = masked.tokenizer.convert_tokens_to_ids(["awful", "superb"])
    with torch.no_grad(), attached(masked, delta):
        for ids, row_logits in zip(rows.cloze.prompts, logits, strict=True):
            expected = masked.language_model(torch.tensor([ids])).logits[
                0, ids.index(masked.tokenizer.mask_token_id), words
            ]
            torch.testing.assert_close(row_logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart"])
def test_a_causal_model_scores_a_words_probability(name: str) -> None:
    backbone = writer(name)
    kind = TemplateClassification(
        Template(text="{{ text }} and {{ mask }} of", words={"bad": "dull broken", "good": "superb"})
    )
    rows = kind.prepare(backbone, LabelledTexts(("purr", "wave coral " * 20), ("bad", "good")), max_length=20)
    delta = through(backbone, kind)
    logits = kind.outputs(ForwardContext(backbone, delta, rows), None)["logits"]
    tail = " of" if backbone.architecture == "causal" else ""
    plain = [backbone.tokenizer(f" {word}{tail}", add_special_tokens=False) for word in ("dull broken", "superb")]
    endings = [tuple(encoded["input_ids"]) for encoded in plain]
    assert rows.cloze.continuations == (tuple(endings), tuple(endings))
    assert all(len(prompt) <= 20 for prompt in rows.cloze.prompts)
    with torch.no_grad(), attached(backbone, delta):
        for prompt, row_logits in zip(rows.cloze.prompts, logits, strict=True):
            for ending, score in zip(endings, row_logits, strict=True):
                if backbone.architecture == "causal":
                    states = backbone.language_model(torch.tensor([[*prompt, *ending]])).logits[0, len(prompt) - 1 : -1]
                else:
                    states = backbone.language_model(torch.tensor([prompt]), labels=torch.tensor([ending])).logits[0]
                expected = F.log_softmax(states, dim=1)[range(len(ending)), ending].sum()
                torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-3)


def test_both_texts_of_a_pair_are_truncated(masked: Backbone) -> None:
    kind = TemplateClassification(Template(text="{{ text }} the {{ mask }} of {{ text_pair }}", words=TEMPLATE.words))
    rows = kind.prepare(masked, LabelledTexts((("wave " * 40, "purr " * 40),), ()), max_length=20)
    shown = masked.tokenizer.decode(rows.cloze.prompts[0])
    assert len(rows.cloze.prompts[0]) <= 20
    assert shown.count("wave") == shown.count("purr") > 4
    assert len(rows.tokens) == len(prepared_rows(masked, "mood", 1).tokens)
