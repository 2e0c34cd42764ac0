"""The metrics, all in one place: fractions, more is better (correlations and R² can be negative).

A metric is given what is right and what was answered, row by row, and gives back a function of row numbers: the score
of those rows alone, some of them perhaps several times. Whatever can be counted once per row is counted once.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF
from scipy import stats
from sklearn import metrics as sk

from tasks.plugins import PluginRegistry

RowIndices = NDArray[np.int64]  # row numbers
SubsetScorer = Callable[[RowIndices], float]
Metric = Callable[[Sequence[Any], Sequence[Any]], SubsetScorer]
PROPORTION_METRICS = ("accuracy", "exact_match")  # of rows that are right: their interval is Wilson's
BOOTSTRAP_SAMPLES = 200
Z_975 = 1.959963984540054  # the normal distribution's 97.5 % point


def _mean(values: Sequence[float]) -> SubsetScorer:
    exact = np.asarray(values, dtype=np.float64)
    return lambda rows: float(exact[rows].mean())


def _of_arrays(score: Callable[[NDArray[Any], NDArray[Any]], float]) -> Metric:
    """A metric that looks at all rows at once."""

    def metric(truth: Sequence[Any], answers: Sequence[Any]) -> SubsetScorer:
        right, given = _array(truth), _array(answers)
        return lambda rows: float(score(right[rows], given[rows]))

    return metric


def _array(values: Sequence[Any]) -> NDArray[Any]:
    return np.asarray(values, dtype=object if isinstance(values[0], str) else None)


def _macro_f1(truth: NDArray[Any], answers: NDArray[Any]) -> float:
    return float(sk.f1_score(truth, answers, labels=sorted(set(truth.tolist())), average="macro", zero_division=0.0))


def _correlation(of: Callable[..., Any]) -> Metric:
    """A correlation; none, 0, where either side is all alike."""

    def score(truth: NDArray[Any], answers: NDArray[Any]) -> float:
        alike = np.ptp(truth) == 0 or np.ptp(answers) == 0
        return 0.0 if alike else float(np.nan_to_num(of(truth, answers).statistic))

    return _of_arrays(score)


def _r2(truth: NDArray[Any], answers: NDArray[Any]) -> float:
    """1 − mean squared error / variance of what is right; 0 where nothing varies."""
    variance = float(np.var(truth))
    return 1.0 - float(np.mean((truth - answers) ** 2)) / variance if variance else 0.0


def normalize_words(text: str) -> list[str]:
    """The words of an answer as SQuAD compares them: lower case, no punctuation, no articles.

    Rajpurkar et al. (2016), "SQuAD: 100,000+ Questions for Machine Comprehension of Text".

    >>> words_of("The  Old Man, and a sea!")
    ['old', 'man', 'and', 'sea']
    """
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def word_f1(right: str, answer: str) -> float:
    """Harmonic mean of precision and recall of an answer's words; of two empty answers 1."""
    wanted, given = normalize_words(right), normalize_words(answer)
    common = sum((Counter(wanted) & Counter(given)).values())
    if not wanted or not given:
        return float(wanted == given)
    return 2 * common / (len(wanted) + len(given))


def _best(score: Callable[[str, str], float]) -> Metric:
    """The mean over rows of the best score against any of a row's right answers."""
    return lambda truth, answers: _mean(
        [max(score(one, answer) for one in right) for right, answer in zip(truth, answers, strict=True)]
    )


def _corpus(metric: Any) -> Metric:
    """A metric of sacrebleu, of all rows together: n-grams are counted per row, and summed over the chosen rows."""

    def counted(truth: Sequence[Sequence[str]], answers: Sequence[str]) -> SubsetScorer:
        most = max(map(len, truth))
        streams = [[right[i] if i < len(right) else None for right in truth] for i in range(most)]
        counts = metric._extract_corpus_statistics(answers, streams)
        return lambda rows: float(metric._aggregate_and_compute([counts[i] for i in rows]).score) / 100

    return counted


def _rouge_l(truth: Sequence[Sequence[str]], answers: Sequence[str]) -> SubsetScorer:
    from rouge_score.rouge_scorer import RougeScorer  # brings all of NLTK along, which takes as long as torch

    scorer = RougeScorer(["rougeL"])
    return _mean(
        [scorer.score_multi(right, answer)["rougeL"].fmeasure for right, answer in zip(truth, answers, strict=True)]
    )


_accuracy = _of_arrays(sk.accuracy_score)


BUILT_IN: Mapping[str, Mapping[str, Metric]] = {
    "classification": {
        "accuracy": _accuracy,
        "macro_f1": _of_arrays(_macro_f1),
        "mcc": _of_arrays(sk.matthews_corrcoef),
    },
    "regression": {
        "pearson": _correlation(stats.pearsonr),
        "spearman": _correlation(stats.spearmanr),
        "r2": _of_arrays(_r2),
    },
    "span": {
        "f1": _best(word_f1),
        "exact_match": _best(lambda right, answer: float(normalize_words(right) == normalize_words(answer))),
    },
    "generation": {
        "chrf": _corpus(CHRF()),
        "bleu": _corpus(BLEU(force=True)),
        "rouge_l": _rouge_l,
        "exact_match": _best(lambda right, answer: float(right.strip() == answer.strip())),
    },
}


def _metric(found: object) -> Metric | str:
    return cast(Metric, found) if callable(found) else "a function of what is right and what was answered"


# A package of somebody else's adds one by an entry point of a group such as `continual.metrics.classification`.
METRICS: Mapping[str, Mapping[str, Metric]] = {
    kind: PluginRegistry(metrics, f"continual.metrics.{kind}", check=_metric) for kind, metrics in BUILT_IN.items()
}


@dataclass(frozen=True)
class ScoreWithInterval:
    """A score, the number of rows it was measured on, and its 95 % interval."""

    value: float
    rows: int
    low: float
    high: float


def metric_score(metric: str, truth: Sequence[Any], answers: Sequence[Any], *, kind: str = "classification") -> float:
    """A kind's `metric` of the answers, a fraction (correlations: −1 to 1; R²: at most 1)."""
    return METRICS[kind][metric](truth, answers)(np.arange(len(truth)))


def score_with_interval(
    metric: str, truth: Sequence[Any], answers: Sequence[Any], *, kind: str = "classification"
) -> ScoreWithInterval:
    """`metric` with its 95 % interval: Wilson's (1927) for a share of rows, else the bootstrap's (Efron 1979).

    >>> measure("accuracy", [0, 1, 1, 0], [0, 1, 1, 1])
    Measured(value=0.75, rows=4, low=0.30064184258700566, high=0.9544127391902995)
    """
    of_rows, count = METRICS[kind][metric](truth, answers), len(truth)
    value = of_rows(np.arange(count))
    low, high = wilson_interval(value, count) if metric in PROPORTION_METRICS else _bootstrap(of_rows, count)
    return ScoreWithInterval(value, count, low, high)


def proportion_with_interval(held: Sequence[bool]) -> ScoreWithInterval:
    """The share of rows of which something holds, with its 95 % interval."""
    value = sum(held) / len(held)
    return ScoreWithInterval(value, len(held), *wilson_interval(value, len(held)))


def wilson_interval(found: float, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share observed on so many rows."""
    centre = (found + Z_975**2 / (2 * rows)) / (1 + Z_975**2 / rows)
    half = Z_975 / (1 + Z_975**2 / rows) * math.sqrt(found * (1 - found) / rows + Z_975**2 / (4 * rows**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _bootstrap(of_rows: SubsetScorer, count: int) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    values = [of_rows(draw.integers(count, size=count)) for _ in range(BOOTSTRAP_SAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
