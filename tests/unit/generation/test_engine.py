"""The engine writes what transformers writes for each row alone, whoever shares the batch."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS
from continual.errors import GenerationError
from continual.generation.engine import Engine
from continual.generation.key_values import KeyValues
from continual.generation.passes import end_tokens, read_on, read_prompts, write_tokens
from continual.generation.prompts import EngineLimits, Progress
from continual.generation.sampling import Ids, SamplingSettings
from continual.kinds.language_model import language_model_obstacle, token_nll
from continual.kinds.writing import make_prompts
from tests.conftest import backbone_of
from tests.helpers.method_pairs import covering_pairs
from tests.helpers.tiny_models import SUITE_FAMILIES
from tests.helpers.tiny_tasks import perturbed_delta
from tests.helpers.writing import engine_of, finish, prompt_ids, reference, write

WRITERS = [kind for kind in SUITE_FAMILIES if language_model_obstacle(backbone_of(kind), what="a test") is None]
TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave", "lemon one", "beak of the sea", "one"]
LONGEST = 9


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> Backbone:
    return replace(backbone_of(request.param), generates=True)


@pytest.fixture
def gpt2() -> Backbone:
    return replace(backbone_of("gpt2"), generates=True)


@pytest.mark.parametrize(("writer", "method"), covering_pairs([None, *METHODS], WRITERS), indirect=["writer"])
def test_every_row_gets_the_text_that_it_gets_alone(writer: Backbone, method: str | None) -> None:
    delta = None if method is None else perturbed_delta(writer, method)
    prompts = prompt_ids(writer, TEXTS[:4])
    engine = engine_of(writer, delta, limits=EngineLimits(rows=2))  # rows join when others are done
    for number, prompt in enumerate(make_prompts(writer, delta, prompts, SamplingSettings(LONGEST))):
        engine.add(number, replace(prompt, sampling=SamplingSettings(LONGEST - number)))
    answers = finish(engine)
    for number, ids in enumerate(prompts):
        assert answers[number].ids == reference(writer, delta, ids, max_new_tokens=LONGEST - number)
        ends = answers[number].ids[-1] == writer.tokenizer.eos_token_id
        assert answers[number].finish_reason == ("stop" if ends else "length")
    assert len(engine) == 0


def test_rows_may_come_at_any_step(writer: Backbone) -> None:
    delta = perturbed_delta(writer, "prompt", length=3)
    prompts = make_prompts(writer, delta, prompt_ids(writer, TEXTS), SamplingSettings(LONGEST))
    engine, waiting, answers = engine_of(writer, delta), [*enumerate(prompts)], {}
    while waiting or len(engine):
        if waiting:
            engine.add(*waiting.pop(0))
        for progress in engine.step():
            if progress.generated:
                answers[progress.key] = progress.generated.ids
        engine.pause()  # so that the backbone may be used for something else
    for number, prompt in enumerate(prompts):
        assert answers[number] == reference(writer, delta, prompt.ids, max_new_tokens=LONGEST)


def test_a_finished_row_does_not_outgrow_the_positions(writer: Backbone) -> None:
    bias = tuple((token, -100.0) for token in end_tokens(writer))
    prompts = make_prompts(writer, None, [(5, 6) * 15, (5,), (6,), (7,), (8,)], SamplingSettings(36, logit_bias=bias))
    engine = engine_of(writer, None)
    for number, prompt in enumerate(prompts):  # one of five is finished early, and stays in the batch
        few = replace(prompt.sampling, max_new_tokens=8)
        engine.add(number, prompt if number else replace(prompt, sampling=few))
    answers = finish(engine)
    assert [len(answers[number].ids) for number in range(5)] == [8, 36, 36, 36, 36]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "opt"])
@pytest.mark.parametrize("method", [None, "lora", "prompt", "prefix", "full"])
def test_the_common_beginning_of_prompts_is_read_once(
    family: str, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = replace(backbone_of(family), generates=True)
    delta, read = None if method is None else perturbed_delta(writer, method), list[int]()

    def recorded(backbone: Backbone, texts: Sequence[Ids], key_values: KeyValues) -> tuple[Tensor, KeyValues]:
        read.extend(map(len, texts))
        return read_on(backbone, texts, key_values)

    monkeypatch.setattr("continual.generation.engine.read_on", recorded)
    begin = "the awful dull tower of sugar"
    prompts = prompt_ids(writer, [f"{begin} {end}" for end in ("and honey", "wave", "lemon one", "beak")] + ["wave"])
    answers = write(writer, delta, prompts, max_new_tokens=6, limits=EngineLimits(rows=2))
    assert answers == [reference(writer, delta, ids, max_new_tokens=6) for ids in prompts]
    assert read
    assert max(read) < len(prompts[0])


@pytest.mark.parametrize("method", [None, "prompt", "prefix"])
def test_a_long_prompt_is_read_in_parts_between_which_others_are_written(
    writer: Backbone, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, calls = None if method is None else perturbed_delta(writer, method), list[int]()

    def recorded_read(backbone: Backbone, texts: Sequence[Ids], key_values: KeyValues) -> tuple[Tensor, KeyValues]:
        calls.append(max(map(len, texts)))
        return read_on(backbone, texts, key_values)

    def recorded_write(backbone: Backbone, tokens: Sequence[int], key_values: KeyValues) -> Tensor:
        calls.append(0)
        return write_tokens(backbone, tokens, key_values)

    monkeypatch.setattr("continual.generation.engine.read_on", recorded_read)
    monkeypatch.setattr("continual.generation.engine.write_tokens", recorded_write)
    prompts = prompt_ids(writer, ["one", TEXTS[1], "wave"])
    limits = EngineLimits(read_tokens=2)
    assert write(writer, delta, prompts, max_new_tokens=LONGEST, limits=limits) == [
        reference(writer, delta, ids, max_new_tokens=LONGEST) for ids in prompts
    ]
    parts = [length for length in calls if length]
    if writer.architecture == "causal":
        assert sum(parts) == sum(len(ids) - 2 for ids in prompts)
        assert max(parts) == 2
        reading = "".join("w" if length == 0 else "r" for length in calls).lstrip("r").rstrip("w")
        assert "r" in reading, "others are written meanwhile"
        assert "rrr" not in reading, "they do not wait for more than two parts"
    else:
        assert not parts


def test_a_first_token_does_not_wait_for_all_parts_of_another_prompt(gpt2: Backbone) -> None:
    engine = engine_of(gpt2, None, limits=EngineLimits(read_tokens=4))
    prompts = prompt_ids(gpt2, [TEXTS[1], "wave", "one"])
    for number, prompt in enumerate(make_prompts(gpt2, None, prompts, SamplingSettings(1))):
        engine.add(number, prompt)
    answers = finish(engine)
    assert [*answers] == [1, 2, 0]
    assert [answers[number].ids for number in range(3)] == [
        reference(gpt2, None, ids, max_new_tokens=1) for ids in prompts
    ]


def test_a_prompt_read_in_parts_begins_anew_when_memory_ends(gpt2: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    (ids,), failures = prompt_ids(gpt2, [" ".join(TEXTS)]), [1]

    def limited(backbone: Backbone, texts: Sequence[Ids], key_values: KeyValues) -> tuple[Tensor, KeyValues]:
        if failures and key_values.width >= 8:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return read_on(backbone, texts, key_values)

    monkeypatch.setattr("continual.generation.engine.read_on", limited)
    expected = [reference(gpt2, None, row, max_new_tokens=LONGEST) for row in ((5,), ids)]
    assert write(gpt2, None, [(5,), ids], max_new_tokens=LONGEST, limits=EngineLimits(read_tokens=4)) == expected
    assert not failures


def test_a_prompt_may_have_an_end_token_of_its_own(gpt2: Backbone) -> None:
    (ids,) = prompt_ids(gpt2, TEXTS[:1])
    whole = reference(gpt2, None, ids, max_new_tokens=9)
    (prompt,) = make_prompts(gpt2, None, [ids], SamplingSettings(9), ends=(whole[3],))
    engine = engine_of(gpt2, None)
    engine.add(0, prompt)
    answer = finish(engine)[0]
    assert answer.ids == whole[: whole.index(whole[3]) + 1]
    assert answer.finish_reason == "stop"


def test_rows_are_read_again_where_the_cache_is_too_small(writer: Backbone) -> None:
    delta, prompts = perturbed_delta(writer, "prefix"), prompt_ids(writer, TEXTS)
    small = EngineLimits(rows=6, tokens=60)
    assert write(writer, delta, prompts, max_new_tokens=LONGEST, limits=small) == [
        reference(writer, delta, ids, max_new_tokens=LONGEST) for ids in prompts
    ]


def test_fewer_rows_are_written_at_once_when_memory_ends(gpt2: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, sizes = prompt_ids(gpt2, TEXTS), list[int]()

    def limited(function: Any, most: int) -> Any:
        def call(backbone: Backbone, rows: Sequence[Any], *arguments: Any) -> Any:
            sizes.append(len(rows))
            if len(rows) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return function(backbone, rows, *arguments)

        return call

    expected = [reference(gpt2, None, ids, max_new_tokens=LONGEST) for ids in prompts]
    monkeypatch.setattr("continual.generation.engine.write_tokens", limited(write_tokens, 2))
    assert write(gpt2, None, prompts, max_new_tokens=LONGEST) == expected
    assert max(sizes) == len(prompts)
    monkeypatch.setattr("continual.generation.engine.read_prompts", limited(read_prompts, 0))
    with pytest.raises(GenerationError, match=r"memory ends with one row of .* \(CUDA out of memory"):
        write(gpt2, None, prompts, max_new_tokens=LONGEST)


def test_a_cancelled_row_is_not_written_on(gpt2: Backbone) -> None:
    prompts = make_prompts(gpt2, None, prompt_ids(gpt2, TEXTS[:3]), SamplingSettings(20))
    engine = engine_of(gpt2, None, limits=EngineLimits(rows=2))
    for number, prompt in enumerate(prompts):
        engine.add(number, prompt)
    engine.step()
    engine.cancel([0, 2, "unknown"])
    assert len(engine) == 1
    answers = finish(engine)
    assert [*answers] == [1]
    assert answers[1].ids == reference(gpt2, None, prompts[1].ids, max_new_tokens=20)


def test_a_row_whose_delta_cannot_be_used_fails_alone(gpt2: Backbone) -> None:
    def build(names: Sequence[str]) -> tuple[list[int], None]:
        return [index for index, name in enumerate(names) if name != "missing"], None

    engine = Engine(gpt2, build)
    (prompt,) = make_prompts(gpt2, None, [(5, 6)], SamplingSettings(3))
    for name in ("there", "missing"):
        engine.add(name, replace(prompt, delta=name))
    steps = [progress for _ in range(4) for progress in engine.step()]
    assert {(progress.key, progress.is_left_out) for progress in steps} == {("there", False), ("missing", True)}


def test_the_text_of_all_steps_is_the_text_of_the_answer(writer: Backbone) -> None:
    prompts = make_prompts(writer, None, prompt_ids(writer, TEXTS), SamplingSettings(20))
    engine, texts, answers = engine_of(writer, None), dict.fromkeys(range(len(TEXTS)), ""), {}
    for number, prompt in enumerate(prompts):
        engine.add(number, replace(prompt, text=True))
    while len(engine):
        for progress in engine.step():
            texts[progress.key] += progress.text
            if progress.generated:
                answers[progress.key] = progress.generated
    for number, answer in answers.items():
        whole = writer.tokenizer.decode(answer.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert texts[number] == whole.strip()


def test_an_answer_ends_before_a_stop_text(gpt2: Backbone) -> None:
    (ids,) = prompt_ids(gpt2, TEXTS[:1])
    whole = reference(gpt2, None, ids, max_new_tokens=20)
    text = gpt2.tokenizer.decode(whole, skip_special_tokens=True)
    stop = text[len(text) // 2 :][:3]
    (prompt,) = make_prompts(gpt2, None, [ids], SamplingSettings(20, stop=(stop,)))
    engine, steps = engine_of(gpt2, None), list[Progress]()
    engine.add(0, prompt)
    while len(engine):
        steps += engine.step()
    assert "".join(step.text for step in steps) == text[: text.index(stop)].strip()
    answer = steps[-1].generated
    assert answer is not None
    assert answer.finish_reason == "stop"
    assert len(answer.ids) < len(whole)


def test_log_probabilities_are_those_of_a_pass_over_the_answer(writer: Backbone) -> None:
    prompts = make_prompts(writer, None, prompt_ids(writer, TEXTS), SamplingSettings(6, log_probs=3))
    engine = engine_of(writer, None)
    for number, prompt in enumerate(prompts):
        engine.add(number, prompt)
    answers = finish(engine)
    for number, answer in enumerate(answers[number] for number in range(len(prompts))):
        with torch.no_grad():
            nll = token_nll(writer, [prompts[number].ids], [answer.ids])[0][0, -len(answer.ids) :]
        log_probs = torch.tensor([place.log_prob for place in answer.log_probs])
        torch.testing.assert_close(log_probs, -nll, rtol=1e-4, atol=1e-4)
        for token, place in zip(answer.ids, answer.log_probs, strict=True):
            assert place.top[0] == (token, place.log_prob)
            assert all(before[1] >= after[1] for before, after in pairwise(place.top))
