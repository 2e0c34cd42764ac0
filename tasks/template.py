"""Classification as cloze: a text with one gap, and the words that fill it for each label.

Schick and Schütze (2021), "Exploiting Cloze Questions for Few-Shot Text Classification" (arXiv:2001.07676).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, field_validator

from tasks.strict_model import StrictModel

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_GAP = "\0"  # does not occur in written text

Word = Annotated[str, Field(min_length=1)]
Words = Annotated[tuple[Word, ...], Field(min_length=1)]


class Template(StrictModel):
    """A cloze pattern and the words of each label.

    Attributes:
        text: A Jinja2 template of `text` (for pairs also `text_pair`) and `mask`, the gap, which occurs once.
        words: The word, or the several words, that fill the gap, by label.

    >>> template = Template(text="{{ text }} It was {{ mask }}.", words={"bad": "awful", "good": "great"})
    >>> template.split_at_gap("Fun to watch.")
    ('Fun to watch. It was ', '.')
    """

    text: str
    words: Mapping[str, Word | Words] = Field(min_length=2)

    @field_validator("text")
    @classmethod
    def _shows_one_gap(cls, value: str) -> str:
        try:
            gaps = _render(value, "a", "b").count(_GAP)
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a template of text, text_pair and mask: {error}") from error
        if gaps != 1:
            example = "'{{ text }} It was {{ mask }}.'"
            raise ValueError(f"must show the gap once, as in {example}; it shows it {gaps} times")
        return value

    @field_validator("words")
    @classmethod
    def _words_differ(cls, value: Mapping[str, str | tuple[str, ...]]) -> Mapping[str, str | tuple[str, ...]]:
        words = [word for words in value.values() for word in _as_tuple(words)]
        if repeated := sorted({word for word in words if words.count(word) > 1}):
            raise ValueError(
                f"the word {repeated[0]!r} is given twice; words of one label add up, and two labels with the same "
                "word could not be told apart by it; change one"
            )
        return value

    @property
    def label_words(self) -> dict[str, tuple[str, ...]]:
        """The words of each label, also where it has one."""
        return {label: _as_tuple(words) for label, words in self.words.items()}

    def split_at_gap(self, text: str, text_pair: str = "") -> tuple[str, str]:
        """Render the template and return the text before and after the gap."""
        before, _, after = _render(self.text, text.replace(_GAP, ""), text_pair.replace(_GAP, "")).partition(_GAP)
        return before, after


def _as_tuple(words: str | tuple[str, ...]) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else words


def _render(template: str, text: str, text_pair: str) -> str:
    return _compile(template).render(text=text, text_pair=text_pair, mask=_GAP)


@lru_cache
def _compile(template: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(template)
