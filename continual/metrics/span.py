"""Metrics of spans of a passage, by their words as SQuAD compares them."""

import re
import string
from collections import Counter
from collections.abc import Mapping

from continual.metrics.subsets import Metric, best_reference


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


def exact_words(reference: str, answer: str) -> float:
    """Return 1 where an answer has the words of a reference, else 0."""
    return float(normalize_words(reference) == normalize_words(answer))


METRICS: Mapping[str, Metric] = {
    "f1": best_reference(word_f1),
    "exact_match": best_reference(exact_words),
}
