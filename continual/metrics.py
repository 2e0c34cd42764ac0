"""Metrics of answers, with 95 % intervals: fractions, higher is better.

Correlations and R² can be negative. A metric takes the targets and the answers, row by row, and returns a function from
row indices, some perhaps several times, to the score of those rows: per-row work is done once for all bootstrap
samples.

Shapes: N rows.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF
from scipy import stats
from sklearn import metrics as sk

from tasks.plugins import PluginRegistry

RowIndices = NDArray[np.int64]
SubsetScorer = Callable[[RowIndices], float]  # from the indices of some rows to their score
Metric = Callable[[Sequence[Any], Sequence[Any]], SubsetScorer]  # from targets and answers

PROPORTION_METRICS = ("accuracy", "exact_match")  # shares of right rows, whose interval is Wilson's
BOOTSTRAP_SAMPLES = 200
Z_975 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class ScoreWithInterval:
    """A score with its 95 % interval.

    Attributes:
        value: The score.
        rows: Number of rows that it is measured on.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    rows: int
    low: float
    high: float


def metric_score(metric: str, truth: Sequence[Any], answers: Sequence[Any], *, kind: str = "classification") -> float:
    """Score answers by a metric.

    Args:
        metric: Name of the metric.
        truth: N targets.
        answers: N answers.
        kind: The kind of task that the metric belongs to, a kind's `metric_kind`.

    Returns:
        A fraction; a correlation from −1 to 1, an R² up to 1.
    """
    return metrics_of(kind)[metric](truth, answers)(np.arange(len(truth)))


def score_with_interval(
    metric: str, truth: Sequence[Any], answers: Sequence[Any], *, kind: str = "classification"
) -> ScoreWithInterval:
    """Score answers by a metric, with a 95 % interval; the arguments are those of `metric_score`.

    The interval of a share of right rows is Wilson's (1927), of any other metric the bootstrap's percentiles (Efron
    1979), with a fixed seed.

    >>> score_with_interval("accuracy", [0, 1, 1, 0], [0, 1, 1, 1])
    ScoreWithInterval(value=0.75, rows=4, low=0.30064184258240184, high=0.9544127391902995)
    """
    scorer, count = metrics_of(kind)[metric](truth, answers), len(truth)
    value = scorer(np.arange(count))
    low, high = wilson_interval(value, count) if metric in PROPORTION_METRICS else _bootstrap_interval(scorer, count)
    return ScoreWithInterval(value, count, low, high)


def proportion_with_interval(outcomes: Sequence[bool]) -> ScoreWithInterval:
    """Return the share of true outcomes, with its 95 % interval."""
    share = sum(outcomes) / len(outcomes)
    return ScoreWithInterval(share, len(outcomes), *wilson_interval(share, len(outcomes)))


def wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """Return Wilson's (1927) 95 % interval of a share of `rows` rows."""
    centre = (share + Z_975**2 / (2 * rows)) / (1 + Z_975**2 / rows)
    half = Z_975 / (1 + Z_975**2 / rows) * math.sqrt(share * (1 - share) / rows + Z_975**2 / (4 * rows**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _bootstrap_interval(scorer: SubsetScorer, count: int) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    samples = [scorer(generator.integers(count, size=count)) for _ in range(BOOTSTRAP_SAMPLES)]
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def _metric_of_arrays(score: Callable[[NDArray[Any], NDArray[Any]], float]) -> Metric:
    """A metric that is a function of all targets and answers."""

    def metric(truth: Sequence[Any], answers: Sequence[Any]) -> SubsetScorer:
        truth_array, answer_array = _array(truth), _array(answers)
        return lambda rows: float(score(truth_array[rows], answer_array[rows]))

    return metric


def _array(values: Sequence[Any]) -> NDArray[Any]:
    return np.asarray(values, dtype=object if isinstance(values[0], str) else None)


def _macro_f1(truth: NDArray[Any], answers: NDArray[Any]) -> float:
    """The mean F1 of the labels that occur among the targets."""
    return float(sk.f1_score(truth, answers, labels=sorted(set(truth.tolist())), average="macro", zero_division=0.0))


def _correlation(correlate: Callable[..., Any]) -> Metric:
    """A correlation of scipy; 0 where all targets or all answers are equal."""

    def score(truth: NDArray[Any], answers: NDArray[Any]) -> float:
        is_constant = np.ptp(truth) == 0 or np.ptp(answers) == 0
        return 0.0 if is_constant else float(np.nan_to_num(correlate(truth, answers).statistic))

    return _metric_of_arrays(score)


def _r2(truth: NDArray[Any], answers: NDArray[Any]) -> float:
    """1 − mean squared error / variance of the targets; 0 where all targets are equal."""
    variance = float(np.var(truth))
    return 1.0 - float(np.mean((truth - answers) ** 2)) / variance if variance else 0.0


def _mean_of_rows(row_scores: Sequence[float]) -> SubsetScorer:
    """The mean of scores [N] that each row has by itself."""
    scores = np.asarray(row_scores, dtype=np.float64)
    return lambda rows: float(scores[rows].mean())


def _best_reference(score: Callable[[str, str], float]) -> Metric:
    """The mean over rows of the best score against any of a row's reference answers."""
    return lambda truth, answers: _mean_of_rows(
        [
            max(score(reference, answer) for reference in references)
            for references, answer in zip(truth, answers, strict=True)
        ]
    )


def normalize_words(text: str) -> list[str]:
    """Return the words of an answer as SQuAD compares them: lower case, no punctuation, no articles.

    Rajpurkar et al. (2016), "SQuAD: 100,000+ Questions for Machine Comprehension of Text".

    >>> normalize_words("The  Old Man, and a sea!")
    ['old', 'man', 'and', 'sea']
    """
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def word_f1(reference: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words; 1 where both texts have none."""
    reference_words, answer_words = normalize_words(reference), normalize_words(answer)
    if not reference_words or not answer_words:
        return float(reference_words == answer_words)
    common = sum((Counter(reference_words) & Counter(answer_words)).values())
    return 2 * common / (len(reference_words) + len(answer_words))


def _exact_words(reference: str, answer: str) -> float:
    return float(normalize_words(reference) == normalize_words(answer))


def _exact_text(reference: str, answer: str) -> float:
    return float(reference.strip() == answer.strip())


def _rouge_l(truth: Sequence[Sequence[str]], answers: Sequence[str]) -> SubsetScorer:
    """The mean over rows of the best ROUGE-L against any of a row's reference texts."""
    from rouge_score.rouge_scorer import RougeScorer  # imports NLTK, which takes as long as torch

    scorer = RougeScorer(["rougeL"])
    return _mean_of_rows(
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


_BUILT_IN: Mapping[str, Mapping[str, Metric]] = {
    "classification": {
        "accuracy": _metric_of_arrays(sk.accuracy_score),
        "macro_f1": _metric_of_arrays(_macro_f1),
        "mcc": _metric_of_arrays(sk.matthews_corrcoef),
    },
    "regression": {
        "pearson": _correlation(stats.pearsonr),
        "spearman": _correlation(stats.spearmanr),
        "r2": _metric_of_arrays(_r2),
    },
    "span": {
        "f1": _best_reference(word_f1),
        "exact_match": _best_reference(_exact_words),
    },
    "generation": {
        "chrf": _sacrebleu(CHRF()),
        "bleu": _sacrebleu(BLEU(force=True)),
        "rouge_l": _rouge_l,
        "exact_match": _best_reference(_exact_text),
    },
}


def _check_metric(plugin: object) -> Metric | str:
    return cast(Metric, plugin) if callable(plugin) else "a function of targets and answers"


@cache
def metrics_of(kind: str) -> PluginRegistry[Metric]:
    """Return the metrics of a kind, with those of the entry-point group `continual.metrics.KIND`."""
    group = f"continual.metrics.{kind}"
    return PluginRegistry("metric", group, check=_check_metric, built_in=_BUILT_IN.get(kind, {}))
