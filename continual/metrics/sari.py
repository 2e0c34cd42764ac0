"""SARI, the metric of text simplification."""

from collections import Counter
from collections.abc import Sequence
from typing import cast

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from continual.metrics.subsets import SubsetScorer, mean_of_rows

SARI_ORDERS = (1, 2, 3, 4)  # lengths of n-grams


def sari(truth: Sequence[Sequence[str]], answers: Sequence[str], *, sources: Sequence[str]) -> SubsetScorer:
    """Return the mean over rows of SARI: how well n-grams of the source are kept and deleted, and others added.

        SARI = (F1_keep + F1_add + precision_delete) / 3     each the mean over n-grams of 1 to 4 tokens

    Xu et al. (2016), "Optimizing Statistical Machine Translation for Text Simplification". As in `evaluate`: texts are
    in lower case, tokenized by sacrebleu's 13a; 0 / 0 is 1; the keep recall counts all n-grams alike.
    """
    tokenize = Tokenizer13a()

    def tokens(text: str) -> list[str]:
        return cast(str, tokenize(text.lower())).split(" ")

    return mean_of_rows(
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
        kept_counts, deleted_counts = source_counts & answer_counts, source_counts - answer_counts
        kept_right, to_keep = kept_counts & reference_counts, source_counts & reference_counts
        added_ngrams, to_add = (
            answer_counts.keys() - source_counts.keys(),
            reference_counts.keys() - source_counts.keys(),
        )
        added_right = len(added_ngrams & to_add)
        keep = _f1(_mean_share(kept_right, kept_counts), _ratio(kept_right.total(), to_keep.total()))
        add = _f1(_ratio(added_right, len(added_ngrams)), _ratio(added_right, len(to_add)))
        parts += [keep, add, _mean_share(deleted_counts - reference_counts, deleted_counts)]
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
