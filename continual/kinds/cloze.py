"""Texts with a gap, as a language model reads them, and how well each of several words fits into it.

A masked model is asked for the word in place of its mask. A causal one reads what stands before the gap and is asked
for the word and what follows; an encoder-decoder reads all of it and is asked for the word.

Shapes: B texts, C words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.features.forward import ForwardRequest
from continual.features.tokens import Tokens, replace_surrogates
from continual.kinds.language_model import (
    Ids,
    forward_continuation_log_prob,
    language_model_obstacle,
    model_inputs,
    pad_batch,
    pad_ids,
    token_nll,
)
from continual.kinds.windows import truncate_text
from tasks import Template, Text

BATCH = 16  # texts: of each of their tokens, a masked model says how probable every word is
SENTINEL = "<extra_id_0>"  # of T5: stands for a gap in what is read, and before what fills it in what is written


FilledTemplate = tuple[Ids, tuple[Ids, ...]]


@dataclass(frozen=True)
class Cloze:
    """prompts: what is read · endings: for each text what is asked for with each word."""

    prompts: tuple[Ids, ...]
    endings: tuple[tuple[Ids, ...], ...]

    def take(self, chosen: Sequence[int]) -> "Cloze":
        """The chosen texts."""
        return Cloze(tuple(self.prompts[i] for i in chosen), tuple(self.endings[i] for i in chosen))

    def with_words(self) -> list[tuple[Ids, Ids]]:
        """Each prompt with its words, where all are single tokens."""
        return [(prompt, tuple(chain(*own))) for prompt, own in zip(self.prompts, self.endings, strict=True)]

    def by_ending(self) -> tuple[list[Ids], list[Ids]]:
        """Each prompt C times, and its endings."""
        prompts = [prompt for prompt, own in zip(self.prompts, self.endings, strict=True) for _ in own]
        return prompts, list(chain(*self.endings))


def template_obstacle(backbone: Backbone, template: Template, *, max_length: int) -> Iterator[str]:
    """Why a backbone cannot fill the gap of a template with its words, and what to do."""
    encoder = backbone.architecture == "encoder"
    if not encoder and (reason := language_model_obstacle(backbone, what="a template")):
        yield reason
    elif encoder and (backbone.language_model is None or backbone.tokenizer.mask_token_id is None):
        yield (
            f"a template needs a backbone with a language modelling head, and the files of {backbone.name!r} have "
            "none; drop `template`, or use a masked, causal or encoder-decoder language model, such as roberta-base"
        )
    else:
        if encoder:
            yield from _longer_words(backbone, template)
        alone, limit = _size(_filled(backbone, template, ("", ""))), min(max_length, backbone.longest_input)
        if alone >= limit:
            yield f"template.text: alone it is {alone} tokens, of {limit} that are read; shorten it or raise max_length"


def _longer_words(backbone: Backbone, template: Template) -> Iterator[str]:
    """A masked model says of one token how probable it is, not of several."""
    for word in template.words.values():
        if len(pieces := _plain(backbone, f" {word}")) != 1:
            shown = ", ".join(backbone.tokenizer.convert_ids_to_tokens(pieces))
            yield (
                f"template.words: {word!r} is {len(pieces)} tokens of {backbone.name!r} ({shown}); "
                "choose a word that is one token"
            )


def build_cloze(backbone: Backbone, template: Template, texts: Sequence[Text], *, max_length: int) -> Cloze:
    """The texts in the template, shortened until they fit `max_length` tokens with it, each of a pair to half of it."""
    limit = min(max_length, backbone.longest_input)
    filled = [_fitting(backbone, template, (text,) if isinstance(text, str) else text, limit) for text in texts]
    return Cloze(tuple(prompt for prompt, _ in filled), tuple(endings for _, endings in filled))


def _fitting(backbone: Backbone, template: Template, texts: Sequence[str], limit: int) -> FilledTemplate:
    room = limit
    while True:
        found = _filled(backbone, template, [truncate_text(backbone, text, room // len(texts)) for text in texts])
        excess = _size(found) - limit
        if excess <= 0 or room <= 0:
            return found
        room -= excess


def _size(filled: FilledTemplate) -> int:
    """How many tokens are read at once."""
    prompt, endings = filled
    return len(prompt) + max(map(len, endings))


def _filled(backbone: Backbone, template: Template, texts: Sequence[str]) -> FilledTemplate:
    """The template with these texts: what is read, and what is asked for with each word."""
    tokenizer, words = backbone.tokenizer, template.words.values()
    gap = tokenizer.mask_token or ""
    before, after = template.split_at_gap(*(text.replace(gap, "") if gap else text for text in texts))
    if backbone.architecture == "causal":
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        prompt = tuple(tokenizer(replace_surrogates(before.rstrip()))["input_ids"]) or (start,)
        return prompt, tuple(_plain(backbone, f" {word}{after}") for word in words)
    if SENTINEL in tokenizer.get_vocab():
        gap, asked = SENTINEL, f"{SENTINEL} "
    else:
        asked = " "
    return tuple(tokenizer(replace_surrogates(before + gap + after))["input_ids"]), tuple(
        _plain(backbone, asked + word) for word in words
    )


def _plain(backbone: Backbone, text: str) -> Ids:
    return tuple(backbone.tokenizer(replace_surrogates(text), add_special_tokens=False)["input_ids"])


def answer_word_scores(backbone: Backbone, gaps: Cloze, chosen: Sequence[int]) -> Tensor:
    """How well each word fits into the gap of the chosen texts: log probabilities, up to a constant of the text [B, C].

    Words of several tokens are worth the sum of them.
    """
    own = gaps.take(chosen)
    if backbone.architecture == "encoder":
        return _at_gap(backbone, own.with_words())
    found, _ = token_nll(backbone, *own.by_ending())
    return -found.sum(dim=1).reshape(len(chosen), -1)


def cloze_inputs(backbone: Backbone, gaps: Cloze) -> Tokens:
    """What the backbone reads to say how well each word fits into the gap of every text."""
    if backbone.architecture == "encoder":
        return Tokens(gaps.prompts, None)
    return model_inputs(backbone, *gaps.by_ending())


def forward_word_scores(backbone: Backbone, gaps: Cloze) -> ForwardRequest[Tensor]:
    """To read the same of all texts, on the CPU: [N, C] or, one after the other, [N · C]."""
    if backbone.architecture == "encoder":
        items, lengths = gaps.with_words(), [len(prompt) for prompt in gaps.prompts]
        return ForwardRequest(items, lengths, _fits_at_gap, torch.tensor, BATCH)
    return forward_continuation_log_prob(backbone, *gaps.by_ending())


def _fits_at_gap(backbone: Backbone, items: Sequence[tuple[Ids, Ids]]) -> list[list[float]]:
    found = _at_gap(backbone, items).tolist()
    return [own[: len(words)] for own, (_, words) in zip(found, items, strict=True)]


def _at_gap(backbone: Backbone, items: Sequence[tuple[Ids, Ids]]) -> Tensor:
    """The logits [B, C] of each prompt's words in place of its mask, C the most words of a prompt."""
    batch = pad_batch(backbone, [prompt for prompt, _ in items])
    rows, places = (batch["input_ids"] == backbone.tokenizer.mask_token_id).nonzero(as_tuple=True)
    with backbone.autocast():
        logits: Tensor = backbone.language_model(**batch).logits
    return logits[rows, places].float().gather(1, pad_ids(backbone, [words for _, words in items], 0))
