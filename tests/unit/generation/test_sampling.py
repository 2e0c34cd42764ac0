"""Sampling: the distribution is that of transformers' processors, and a row's draws are its own."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from continual.generation.sampling import SamplingSettings, TokenSampler, choose_tokens, token_log_probs
from tests.conftest import backbone_of

VOCABULARY = 12
LOGITS = torch.linspace(-2, 3, VOCABULARY)[torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))]


def frequencies(count: int, **settings: Any) -> Tensor:
    """Return how often each token is drawn [V], as fractions."""
    sampler = TokenSampler(SamplingSettings(count, **{"temperature": 1.0, "seed": 3, **settings}), (0,))
    drawn = torch.tensor([sampler.choose(LOGITS, ()) for _ in range(count)])
    return torch.bincount(drawn, minlength=VOCABULARY) / count


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 1}],
)
def test_draws_follow_the_distribution_of_transformers(settings: dict[str, Any]) -> None:
    model = backbone_of("gpt2").language_model
    config = GenerationConfig(do_sample=True, pad_token_id=0, **{"top_k": 0, **settings})
    config.validate()
    processors = model._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    expected = processors(torch.tensor([[0]]), LOGITS[None].clone())[0].softmax(dim=0)
    count = 4000
    drawn = frequencies(count, **settings)
    assert not (drawn > 0)[expected == 0].any()
    assert (drawn - expected).abs().max() < 4 * math.sqrt(0.25 / count)


def test_a_seed_repeats_the_draws_and_none_does_not() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = TokenSampler(SamplingSettings(30, temperature=2.0, seed=seed), ())
        return [sampler.choose(LOGITS, ()) for _ in range(30)]

    assert draws(5) == draws(5) != draws(6)
    assert draws(None) != draws(None)
    assert draws(-1) == draws(-1)


def test_penalties_subtract_from_what_was_written() -> None:
    written, best = [2, 2, 5], int(LOGITS.argmax())
    settings = SamplingSettings(9, presence_penalty=0.5, frequency_penalty=0.25)
    scores = TokenSampler(settings, ())._penalized(LOGITS[None], written)[0]
    expected = LOGITS.clone()
    expected[2] -= 0.5 + 2 * 0.25
    expected[5] -= 0.5 + 0.25
    torch.testing.assert_close(scores, expected)
    repeated = TokenSampler(SamplingSettings(9, repetition_penalty=1e6), (best,))
    assert repeated.choose(LOGITS, ()) != best
    biased = TokenSampler(SamplingSettings(9, logit_bias=((best, -100.0), (7, 100.0))), ())
    assert biased.choose(LOGITS, ()) == 7


def test_rows_of_a_batch_have_their_own_settings() -> None:
    best, worst = int(LOGITS.argmax()), int(LOGITS.argmin())
    samplers = [
        TokenSampler(settings, ())
        for settings in (
            SamplingSettings(1),
            SamplingSettings(1, logit_bias=((worst, 100.0),)),
            SamplingSettings(1, temperature=1.0, top_k=1),
        )
    ]
    assert choose_tokens(LOGITS.expand(3, -1), samplers, [[], [], []]) == [best, worst, best]
    assert [sampler.is_plain for sampler in samplers] == [True, False, False]


def test_log_probabilities_are_of_the_models_distribution() -> None:
    best = int(LOGITS.argmax())
    rows = token_log_probs(LOGITS.expand(3, -1), [best, 4, best], [2, None, 0])
    expected = LOGITS.log_softmax(dim=0)
    assert rows[1] is None
    for row, count in ((rows[0], 2), (rows[2], 0)):
        assert row is not None
        assert row.token == best
        assert row.log_prob == pytest.approx(float(expected[best]))
        assert len(row.top) == count
    assert rows[0]
    assert [token for token, _ in rows[0].top] == expected.topk(2).indices.tolist()
