"""Metrics of generated texts: chrF, BLEU, ROUGE-L, SARI, matches of texts and of numbers, and perplexity."""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from continual.metrics.sari import sari
from continual.metrics.span import exact_words
from continual.metrics.subsets import Metric, RowIndices, SubsetScorer, best_reference, mean_of_rows

MAX_LOSS = 700.0  # in nats per token: its exponential is nearly the largest float
# A sign counts where no word or number ends before it, commas where they part thousands.
_NUMBER = re.compile(
    r"(?:(?<![\w.])[-−][$€£]?)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4}(?!\w))?"
)


def _exact_text(reference: str, answer: str) -> float:
    return float(reference.strip() == answer.strip())


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text; None where there is none.

    >>> [str(last_number(text)) for text in ("5 + 3 = 8.", "#### 1,234", "from 10-3 to -$2.50", "none")]
    ['8', '1234', '-2.50', 'None']
    """
    numbers = _NUMBER.findall(text)
    return Decimal(re.sub(r"[,$€£]", "", numbers[-1]).replace("−", "-")) if numbers else None


def _equal_numbers(reference: str, answer: str) -> float:
    """1 where the last number of the answer is that of the reference, as GSM8K compares (Cobbe et al. 2021)."""
    expected = last_number(reference)
    return float(expected is not None and last_number(answer) == expected)


def _perplexity(
    truth: Sequence[Sequence[str]],
    answers: Sequence[str],
    *,
    target_log_probabilities: Sequence[float],
    target_lengths: Sequence[int],
) -> SubsetScorer:
    """exp(−Σ_i log p(target_i | text_i) / Σ_i tokens of target_i); lower is better."""
    log_probabilities, lengths = (np.asarray(values, float) for values in (target_log_probabilities, target_lengths))

    def score(rows: RowIndices) -> float:
        return math.exp(min(-log_probabilities[rows].sum() / lengths[rows].sum(), MAX_LOSS))

    return score


def _rouge_l(truth: Sequence[Sequence[str]], answers: Sequence[str]) -> SubsetScorer:
    """The mean over rows of the best ROUGE-L against any of a row's reference texts."""
    from rouge_score.rouge_scorer import RougeScorer  # imports NLTK, which takes as long as torch

    scorer = RougeScorer(["rougeL"])
    return mean_of_rows(
        [
            scorer.score_multi(references, answer)["rougeL"].fmeasure
            for references, answer in zip(truth, answers, strict=True)
        ]
    )


def _sacrebleu(metric: Any) -> Metric:
    """A corpus metric of sacrebleu: n-grams are counted once per row, and summed over chosen rows."""

    def score(truth: Sequence[Sequence[str]], answers: Sequence[str]) -> SubsetScorer:
        max_references = max(map(len, truth))
        streams = [
            [references[i] if i < len(references) else None for references in truth] for i in range(max_references)
        ]
        counts = metric._extract_corpus_statistics(answers, streams)
        return lambda rows: float(metric._aggregate_and_compute([counts[i] for i in rows]).score) / 100

    return score


METRICS: Mapping[str, Metric] = {
    "chrf": _sacrebleu(CHRF()),
    "bleu": _sacrebleu(BLEU(force=True)),
    "rouge_l": _rouge_l,
    "exact_match": best_reference(_exact_text),
    "sari": sari,
    "normalized_match": best_reference(exact_words),
    "numeric_match": best_reference(_equal_numbers),
    "perplexity": _perplexity,
}
