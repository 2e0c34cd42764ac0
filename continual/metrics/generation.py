"""Metrics of generated texts: chrF, BLEU, ROUGE-L, SARI and exact match."""

from collections.abc import Mapping, Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from continual.metrics.sari import sari
from continual.metrics.subsets import Metric, SubsetScorer, best_reference, mean_of_rows


def _exact_text(reference: str, answer: str) -> float:
    return float(reference.strip() == answer.strip())


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
}
