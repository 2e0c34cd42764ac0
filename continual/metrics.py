"""Metrics of answers, with 95 % intervals: fractions, higher is better, except the expected calibration error.

Correlations and R² can be negative. A metric takes the targets and the answers, row by row, and returns a function from
row indices, some perhaps several times, to the score of those rows: per-row work is done once for all bootstrap
samples. A metric that needs more than targets and answers declares it by keyword-only parameters (`INPUTS`):

    labels          the C labels of the task, sorted
    probabilities   the probability of each label [N, C], float64
    sources         the N texts that were answered

Shapes: N rows, C labels.
"""

import inspect
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
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from scipy import stats
from sklearn import metrics as sk

from tasks.errors import InputError
from tasks.plugins import PluginRegistry

RowIndices = NDArray[np.int64]
SubsetScorer = Callable[[RowIndices], float]  # from the indices of some rows to their score
Metric = Callable[..., SubsetScorer]  # from targets and answers, and the inputs that it declares

INPUTS = ("labels", "probabilities", "sources")  # keyword-only parameters that a metric may declare
NO_INPUTS: Mapping[str, Any] = {}
PROPORTION_METRICS = ("accuracy", "exact_match")  # shares of right rows, whose interval is Wilson's
CALIBRATION_METRICS = {"classification": ("ece",)}  # by kind: measured beside the score, lower is better
CALIBRATION_BINS = 15  # Guo et al. (2017)
SARI_ORDERS = (1, 2, 3, 4)  # lengths of n-grams
CHANCE_AUROC = 0.5
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


def metric_score(
    metric: str,
    truth: Sequence[Any],
    answers: Sequence[Any],
    *,
    kind: str = "classification",
    inputs: Mapping[str, Any] = NO_INPUTS,
) -> float:
    """Score answers by a metric.

    Args:
        metric: Name of the metric.
        truth: N targets.
        answers: N answers.
        kind: The kind of task that the metric belongs to, a kind's `metric_kind`.
        inputs: What the metric needs besides, by the names of `INPUTS`; more is ignored.

    Returns:
        A fraction; a correlation from −1 to 1, an R² up to 1.

    Raises:
        InputError: An input that the metric needs is missing, or the labels are not what it is defined for.
    """
    return _scorer(metric, truth, answers, kind, inputs)(np.arange(len(truth)))


def score_with_interval(
    metric: str,
    truth: Sequence[Any],
    answers: Sequence[Any],
    *,
    kind: str = "classification",
    inputs: Mapping[str, Any] = NO_INPUTS,
) -> ScoreWithInterval:
    """Score answers by a metric, with a 95 % interval; arguments and errors are those of `metric_score`.

    The interval of a share of right rows is Wilson's (1927), of any other metric the bootstrap's percentiles (Efron
    1979), with a fixed seed.

    >>> score_with_interval("accuracy", [0, 1, 1, 0], [0, 1, 1, 1])
    ScoreWithInterval(value=0.75, rows=4, low=0.30064184258240184, high=0.9544127391902995)
    """
    scorer, count = _scorer(metric, truth, answers, kind, inputs), len(truth)
    value = scorer(np.arange(count))
    low, high = wilson_interval(value, count) if metric in PROPORTION_METRICS else _bootstrap_interval(scorer, count)
    return ScoreWithInterval(value, count, low, high)


def required_inputs(metric: str, *, kind: str) -> tuple[str, ...]:
    """Return the names of `INPUTS` that a metric declares.

    >>> required_inputs("auroc", kind="classification"), required_inputs("accuracy", kind="classification")
    (('labels', 'probabilities'), ())
    """
    return tuple(name for name in _keywords(metrics_of(kind)[metric]) if name in INPUTS)


def label_obstacle(metric: str, labels: Sequence[str], *, kind: str) -> str | None:
    """Return why a metric is not defined for a task's labels, and what to do; None where it is."""
    if (kind, metric) != ("classification", "f1") or len(labels) == 2:
        return None
    return (
        f"metric 'f1' is the F1 score of the second of two labels, and the task has {len(labels)}; "
        "use macro_f1, the mean of the F1 scores of all labels"
    )


def _scorer(
    metric: str, truth: Sequence[Any], answers: Sequence[Any], kind: str, inputs: Mapping[str, Any]
) -> SubsetScorer:
    needed = required_inputs(metric, kind=kind)
    if missing := [name for name in needed if inputs.get(name) is None]:
        raise InputError(
            f"metric {metric!r} of {kind} needs {', '.join(needed)}, and {', '.join(missing)} were not given; "
            "pass them as `inputs`, or use another metric"
        )
    return metrics_of(kind)[metric](truth, answers, **{name: inputs[name] for name in needed})


def _keywords(metric: Metric) -> dict[str, bool]:
    """The keyword-only parameters of a metric, and whether each must be given."""
    parameters = inspect.signature(metric).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}


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
    """The mean F1 of the labels that occur among the targets or the answers."""
    return float(sk.f1_score(truth, answers, average="macro", zero_division=0.0))


def _binary_f1(truth: Sequence[str], answers: Sequence[str], *, labels: Sequence[str]) -> SubsetScorer:
    """2 TP / (2 TP + FP + FN) of the second label; 0 where it is neither a target nor an answer."""
    if reason := label_obstacle("f1", labels, kind="classification"):
        raise InputError(reason)
    expected, answered = (np.array([label == labels[1] for label in side]) for side in (truth, answers))

    def score(rows: RowIndices) -> float:
        count = int(expected[rows].sum() + answered[rows].sum())
        return 2 * int((expected[rows] & answered[rows]).sum()) / count if count else 0.0

    return score


def _auroc(
    truth: Sequence[str], answers: Sequence[str], *, labels: Sequence[str], probabilities: NDArray[np.float64]
) -> SubsetScorer:
    """The area under the ROC curve of the second of two labels; of more labels the mean of each against the rest.

        AUROC = Σ_{i positive, j negative} ([p_i > p_j] + ½ [p_i = p_j]) / (number of such pairs)

    Hanley and McNeil (1982); Hand and Till (2001). A label that all rows have, or none, is left out of the mean, and
    without any other the area is that of chance. Probabilities are sorted once for all resamples.
    """
    count, columns = len(truth), np.arange(len(labels)) if len(labels) > 2 else np.array([1])
    index = {label: i for i, label in enumerate(labels)}
    is_positive = np.array([index.get(label, -1) for label in truth])[:, None] == columns
    values = np.asarray(probabilities)[:, columns]
    order = values.argsort(axis=0)
    is_negative = ~np.take_along_axis(is_positive, order, axis=0)
    rows, column = np.nonzero(is_positive)  # the positive row of each pair
    first, last = (stats.rankdata(values, method=method, axis=0)[rows, column].astype(int) for method in ("min", "max"))

    def score(chosen: RowIndices) -> float:
        times = np.bincount(chosen, minlength=count)
        negatives = np.zeros((count + 1, len(columns)))  # among the k least probable rows
        np.cumsum(times[order] * is_negative, axis=0, out=negatives[1:])
        beaten = (negatives[first - 1, column] + negatives[last, column]) / 2
        wins, positives = (
            np.bincount(column, weights=times[rows] * each, minlength=len(columns)) for each in (beaten, 1.0)
        )
        pairs = positives * (len(chosen) - positives)
        return float(np.mean(wins[pairs > 0] / pairs[pairs > 0])) if pairs.any() else CHANCE_AUROC

    return score


def _ece(truth: Sequence[str], answers: Sequence[str], *, probabilities: NDArray[np.float64]) -> SubsetScorer:
    """The expected calibration error, of the answers' probabilities in M bins of equal width; lower is better.

        ECE = Σ_m |B_m| / N · |accuracy(B_m) − mean probability(B_m)|     B_m: probability in ((m − 1) / M, m / M]

    Naeini et al. (2015), "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; Guo et al. (2017), "On
    Calibration of Modern Neural Networks" (arXiv:1706.04599).
    """
    confidence = np.asarray(probabilities).max(axis=1)
    bins = np.digitize(confidence, np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS, right=True)
    gaps = np.array([right == answer for right, answer in zip(truth, answers, strict=True)]) - confidence
    return lambda rows: float(np.abs(np.bincount(bins[rows], weights=gaps[rows])).sum()) / len(rows)


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


def _sari(truth: Sequence[Sequence[str]], answers: Sequence[str], *, sources: Sequence[str]) -> SubsetScorer:
    """The mean over rows of SARI: how well n-grams of the source are kept and deleted, and others added.

        SARI = (F1_keep + F1_add + precision_delete) / 3     each the mean over n-grams of 1 to 4 tokens

    Xu et al. (2016), "Optimizing Statistical Machine Translation for Text Simplification". As in `evaluate`: texts are
    in lower case, tokenized by sacrebleu's 13a; 0 / 0 is 1; the keep recall counts all n-grams alike.
    """
    tokenize = Tokenizer13a()

    def tokens(text: str) -> list[str]:
        return cast(str, tokenize(text.lower())).split(" ")

    return _mean_of_rows(
        [
            _sari_of_row(tokens(source), tokens(answer), [tokens(reference) for reference in references])
            for source, answer, references in zip(sources, answers, truth, strict=True)
        ]
    )


def _sari_of_row(source: Sequence[str], answer: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    parts = []
    for order in SARI_ORDERS:
        # Source and answer count once for each reference, so that their counts compare with those of all references.
        source_counts, answer_counts = (_ngrams(text, order, times=len(references)) for text in (source, answer))
        reference_counts = sum((_ngrams(reference, order) for reference in references), Counter[tuple[str, ...]]())
        kept, deleted = source_counts & answer_counts, source_counts - answer_counts
        kept_right, to_keep = kept & reference_counts, source_counts & reference_counts
        added, to_add = answer_counts.keys() - source_counts.keys(), reference_counts.keys() - source_counts.keys()
        added_right = len(added & to_add)
        keep = _f1(_mean_share(kept_right, kept), _ratio(kept_right.total(), to_keep.total()))
        add = _f1(_ratio(added_right, len(added)), _ratio(added_right, len(to_add)))
        parts += [keep, add, _mean_share(deleted - reference_counts, deleted)]
    return sum(parts) / len(parts)


def _ngrams(tokens: Sequence[str], order: int, *, times: int = 1) -> Counter[tuple[str, ...]]:
    counts = Counter(zip(*(tokens[start:] for start in range(order)), strict=False))
    return Counter({ngram: count * times for ngram, count in counts.items()})


def _mean_share(part: Counter[tuple[str, ...]], whole: Counter[tuple[str, ...]]) -> float:
    return _ratio(sum(count / whole[ngram] for ngram, count in part.items()), len(whole))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


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
        "f1": _binary_f1,
        "auroc": _auroc,
        "ece": _ece,
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
        "sari": _sari,
    },
}


def _check_metric(plugin: object) -> Metric | str:
    expected = f"a function of targets and answers, with no keyword-only parameters but {', '.join(INPUTS)}"
    if not callable(plugin):
        return expected
    required = (name for name, must_be_given in _keywords(plugin).items() if must_be_given)
    return expected if set(required) - set(INPUTS) else cast(Metric, plugin)


@cache
def metrics_of(kind: str) -> PluginRegistry[Metric]:
    """Return the metrics of a kind, with those of the entry-point group `continual.metrics.KIND`.

    All but those of `CALIBRATION_METRICS` can be a task's metric.
    """
    group = f"continual.metrics.{kind}"
    return PluginRegistry("metric", group, check=_check_metric, built_in=_BUILT_IN.get(kind, {}))
