"""Metrics against other implementations, and against published values."""

import math
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from scipy import stats
from sklearn import metrics as sk

from continual.metrics import metric_score, metrics_of, score_with_interval, wilson_interval
from continual.metrics.generation import last_number
from continual.metrics.span import normalize_words, word_f1
from tasks import KIND_SCHEMAS
from tasks.errors import InputError

NUMBERS = st.floats(-1e3, 1e3, width=32)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=30)
TEXTS = st.text(st.sampled_from("ab cd.,! theÄ"), max_size=20)

ANSWERS = ["the cat sat on the mat", "a dog", "birds fly south", "it is late"]
REFERENCES = [
    ("the cat is on the mat", "there is a cat on the mat"),
    ("a dog",),
    ("the birds fly north in spring", "birds go south", "birds fly"),
    ("it is early",),
]


@given(PAIRS)
def test_correlations_equal_numpys(pairs: list[tuple[float, float]]) -> None:
    truth, answers = (list(side) for side in zip(*pairs, strict=True))
    if np.ptp(truth) < 1e-3 or np.ptp(answers) < 1e-3:
        return
    expected = np.corrcoef(truth, answers)[0, 1]
    assert metric_score("pearson", truth, answers, kind="regression") == pytest.approx(expected, abs=1e-6)
    ranks = np.corrcoef(stats.rankdata(truth), stats.rankdata(answers))[0, 1]
    assert metric_score("spearman", truth, answers, kind="regression") == pytest.approx(ranks, abs=1e-9)
    assert metric_score("r2", truth, answers, kind="regression") == pytest.approx(sk.r2_score(truth, answers))


@pytest.mark.parametrize("metric", metrics_of("regression"))
def test_constant_numbers_have_no_correlation(metric: str) -> None:
    assert metric_score(metric, [2.0, 2.0, 2.0], [1.0, 2.0, 3.0], kind="regression") == 0.0
    assert metric_score(metric, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], kind="regression") == 0.0


@pytest.mark.parametrize(
    ("right", "answer", "f1"),
    [
        ("The Old Man", "old man!", 1.0),
        ("in 1066", "1066", 2 / 3),
        ("1066", "the year 1066 of our lord", 2 / 6),
        ("a b c", "d", 0.0),
        ("the", "", 1.0),
        ("cat", "", 0.0),
        ("cat cat dog", "cat dog dog", 2 / 3),
    ],
)
def test_word_f1_of_published_pairs(right: str, answer: str, f1: float) -> None:
    assert word_f1(right, answer) == pytest.approx(f1)


@given(TEXTS, TEXTS)
def test_word_f1_is_precision_and_recall(right: str, answer: str) -> None:
    right_words, given_words = Counter(normalize_words(right)), Counter(normalize_words(answer))
    score = word_f1(right, answer)
    assert score == pytest.approx(word_f1(answer, right))
    if not right_words or not given_words:
        assert score == float(right_words == given_words)
        return
    common = (right_words & given_words).total()
    precision, recall = common / given_words.total(), common / right_words.total()
    assert score == pytest.approx(2 * precision * recall / (precision + recall) if common else 0.0)


def test_the_best_of_several_references_counts() -> None:
    truth, answers = [("x y", "y z"), ("x",)], ["z", "q"]
    assert metric_score("f1", truth, answers, kind="span") == pytest.approx((2 / 3 + 0) / 2)
    assert metric_score("exact_match", [("A cat.", "dog"), ("x",)], ["cat", "y"], kind="span") == 0.5
    assert metric_score("exact_match", [("A cat.", "dog")], ["cat"], kind="generation") == 0.0
    assert metric_score("exact_match", [("a", " dog")], ["dog "], kind="generation") == 1.0


@pytest.mark.parametrize(("metric", "reference"), [("chrf", sacrebleu.CHRF()), ("bleu", sacrebleu.BLEU(force=True))])
def test_corpus_metrics_equal_sacrebleus(metric: str, reference: "sacrebleu.CHRF | sacrebleu.BLEU") -> None:
    longest = max(map(len, REFERENCES))
    streams = [[refs[i] if i < len(refs) else None for refs in REFERENCES] for i in range(longest)]
    expected = reference.corpus_score(ANSWERS, streams).score / 100
    assert metric_score(metric, REFERENCES, ANSWERS, kind="generation") == pytest.approx(expected)
    assert 0 < expected < 1
    chosen = np.array([0, 0, 2])
    again = reference.corpus_score([ANSWERS[i] for i in chosen], [[stream[i] for i in chosen] for stream in streams])
    assert metrics_of("generation")[metric](REFERENCES, ANSWERS)(chosen) == pytest.approx(again.score / 100)


def longest_common(first: list[str], second: list[str]) -> int:
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    def score(right: str, answer: str) -> float:
        common = longest_common(right.split(), answer.split())
        return 2 * common / (len(right.split()) + len(answer.split()))

    expected = [
        max(score(right, answer) for right in rights) for rights, answer in zip(REFERENCES, ANSWERS, strict=True)
    ]
    assert metric_score("rouge_l", REFERENCES, ANSWERS, kind="generation") == pytest.approx(sum(expected) / 4)


@pytest.mark.parametrize("metric", KIND_SCHEMAS["generation"].metrics)
@settings(deadline=None, max_examples=25)
@given(answers=st.lists(TEXTS, min_size=1, max_size=5))
def test_any_text_scores_best_against_itself(metric: str, answers: list[str]) -> None:
    inputs = {"sources": ["a text, as it was"] * len(answers)}
    value = metric_score(metric, [("the same",)] * len(answers), answers, kind="generation", inputs=inputs)
    assert 0 <= value <= 1
    long = ["one two three four 5"] * len(answers)
    best = metric_score(metric, [(text,) for text in long], long, kind="generation", inputs=inputs)
    assert best == pytest.approx(1.0)


def sari(source: str, answer: str, references: tuple[str, ...]) -> float:
    return metric_score("sari", [references], [answer], kind="generation", inputs={"sources": [source]})


def test_sari_of_published_texts() -> None:
    """The example of `evaluate`, and two answers with less that is neither kept nor asked for."""
    source = "About 95 species are currently accepted ."
    references = (
        "About 95 species are currently known .",
        "About 95 species are now accepted .",
        "95 species are now accepted .",
    )
    answers = (
        "About 95 you now get in .",
        "About 95 species are now agreed .",
        "About 95 species are currently agreed .",
    )
    scores = [sari(source, answer, references) for answer in answers]
    assert scores[0] == pytest.approx(0.26953601953601954, abs=1e-12)
    assert scores[1] > scores[2] > scores[0]


def expected_sari(source: str, answer: str, references: tuple[str, ...]) -> Fraction:
    """Xu et al. (2016), with the references' counts as fractions of the number of references, and 0 / 0 = 1."""

    def counts(text: str, n: int) -> Counter[str]:
        tokens = Tokenizer13a()(text.lower()).split(" ")
        return Counter(" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    def ratio(over: Fraction, under: Fraction) -> Fraction:
        return over / under if under else Fraction(1)

    def f1(precision: Fraction, recall: Fraction) -> Fraction:
        return 2 * precision * recall / (precision + recall) if precision + recall else Fraction(0)

    total = Fraction(0)
    for n in range(1, 5):
        told, said = counts(source, n), counts(answer, n)
        wanted = {g: Fraction(sum(counts(text, n)[g] for text in references), len(references)) for text in references
                  for g in counts(text, n)}  # fmt: skip
        kept = {g: min(told[g], said[g]) for g in told if said[g]}
        good = {g: min(Fraction(kept[g]), wanted.get(g, Fraction(0))) for g in kept}
        keep_precision = ratio(sum((good[g] / kept[g] for g in kept), Fraction(0)), Fraction(len(kept)))
        to_keep = sum((min(Fraction(told[g]), wanted.get(g, Fraction(0))) for g in told), Fraction(0))
        gone = {g: told[g] - said[g] for g in told if told[g] > said[g]}
        rightly = {g: max(gone[g] - wanted.get(g, Fraction(0)), Fraction(0)) for g in gone}
        new, due = {g for g in said if g not in told}, {g for g in wanted if g not in told}
        total += f1(keep_precision, ratio(sum(good.values(), Fraction(0)), to_keep))
        total += f1(
            ratio(Fraction(len(new & due)), Fraction(len(new))), ratio(Fraction(len(new & due)), Fraction(len(due)))
        )
        total += ratio(sum((rightly[g] / gone[g] for g in gone), Fraction(0)), Fraction(len(gone)))
    return total / 12


SENTENCES = st.lists(st.sampled_from(["a", "B", "c,", "d."]), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None)
@given(SENTENCES, SENTENCES, st.lists(SENTENCES, min_size=1, max_size=3).map(tuple))
def test_sari_is_the_papers_equation(source: str, answer: str, references: tuple[str, ...]) -> None:
    assert sari(source, answer, references) == pytest.approx(float(expected_sari(source, answer, references)))


def test_a_metric_says_which_input_it_lacks() -> None:
    with pytest.raises(InputError, match="'sari' of generation needs sources, and sources were not given"):
        metric_score("sari", REFERENCES, ANSWERS, kind="generation")


def test_shares_have_wilson_intervals_and_other_metrics_bootstrap_ones() -> None:
    truth = [("x",)] * 20
    answers = ["x"] * 15 + ["y"] * 5
    exact = score_with_interval("exact_match", truth, answers, kind="span")
    assert (exact.low, exact.high) == wilson_interval(0.75, 20)
    f1 = score_with_interval("f1", truth, answers, kind="span")
    assert f1.low < f1.value == 0.75 < f1.high
    assert abs((f1.high - f1.low) / 2 - 1.96 * math.sqrt(0.75 * 0.25 / 20)) < 0.08
    assert score_with_interval("f1", truth, answers, kind="span") == f1


def test_the_interval_of_a_correlation_brackets_it() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=200)
    score = score_with_interval("pearson", truth.tolist(), (truth + draw.normal(size=200)).tolist(), kind="regression")
    low, high = stats.pearsonr(truth, truth + np.random.default_rng(1).normal(size=200)).confidence_interval()
    assert score.low < score.value < score.high
    assert score.high - score.low == pytest.approx(high - low, rel=0.4)


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("5 + 3 = 8\n#### 8", "First 5, then 3, so the answer is 8.", 1),
        ("#### 1,234", "It costs $1234.00", 1),
        ("18", "18 dollars, 3 times", 0),
        ("-2", "from 3 to −2", 1),
        ("3", "pages 10-3", 1),
        ("0.5", "a half, .50", 1),
        ("8", "", 0),
        ("none", "none", 0),
        ("19", "covid-19", 1),
        ("3", "1,2,3", 1),
        ("100000", "1e5", 1),
    ],
)
def test_the_last_numbers_are_compared(reference: str, answer: str, expected: float) -> None:
    assert metric_score("numeric_match", [(reference,)], [answer], kind="generation") == expected


@given(st.decimals(-(10**9), 10**9, places=3), TEXTS)
def test_a_number_is_read_as_it_is_written(number: Decimal, text: str) -> None:
    assert last_number(f"{text} ({number:,})") == number


def test_the_best_reference_counts_in_matches() -> None:
    truth = [("7", "#### 8"), ("The cat!", "a dog")]
    assert metric_score("numeric_match", truth, ["so 8", "9"], kind="generation") == 0.5
    assert metric_score("normalized_match", truth, ["7.", "Dog"], kind="generation") == 1.0
    assert metric_score("normalized_match", truth, ["9", "cat"], kind="generation") == 0.5


def test_perplexity_is_of_all_tokens_together() -> None:
    inputs = {"target_log_probabilities": [-2.0, -9.0, -1.0], "target_lengths": [2, 3, 1]}
    rows = [("a",)] * 3
    value = metric_score("perplexity", rows, ["a"] * 3, kind="generation", inputs=inputs)
    assert value == pytest.approx(math.exp(12 / 6))
    with pytest.raises(InputError, match="target_lengths"):
        metric_score("perplexity", rows, ["a"] * 3, kind="generation")
