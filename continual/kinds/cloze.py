"""Texts with a gap for a language model, and the scores of candidate words in it.

A masked model predicts the word in place of its mask token. A causal model reads the text before the gap once and
scores each word with the text behind it. An encoder-decoder reads the whole text, and scores the word in its decoder.

Shapes: N texts, B texts of a batch, C words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.features.forward import ForwardRequest
from continual.features.tokens import Tokens, replace_surrogates
from continual.generation.padding import pad_batch, pad_ids
from continual.generation.sampling import Ids
from continual.kinds.continuations import (
    Branches,
    can_share_prompts,
    continuation_log_probs,
    forward_log_probs,
    sequence_ids,
)
from continual.kinds.language_model import (
    forward_continuation_log_prob,
    language_model_obstacle,
    model_inputs,
    token_nll,
)
from continual.kinds.windows import truncate_text
from tasks import Template, Text, text_parts

BATCH = 16  # texts; small, as a masked model returns logits over the vocabulary for each of their tokens
SENTINEL = "<extra_id_0>"  # of T5: stands for the gap in the encoder's input, and before its filling in the decoder's

FilledTemplate = tuple[Ids, tuple[Ids, ...]]  # the prompt, and the continuation with each word


@dataclass(frozen=True)
class Cloze:
    """N texts with a gap, tokenized.

    Attributes:
        prompts: Input of each text: with the gap, or for a causal model the text before it.
        continuations: For each text and each of the C words, the tokens whose probability scores the word.
    """

    prompts: tuple[Ids, ...]
    continuations: tuple[tuple[Ids, ...], ...]

    def take(self, indices: Sequence[int]) -> "Cloze":
        """Select texts by index."""
        return Cloze(tuple(self.prompts[i] for i in indices), tuple(self.continuations[i] for i in indices))

    def prompt_word_pairs(self) -> list[tuple[Ids, Ids]]:
        """Return each prompt with its C words, where every word is one token."""
        pairs = zip(self.prompts, self.continuations, strict=True)
        return [(prompt, tuple(chain(*words))) for prompt, words in pairs]

    def branches(self) -> list[Branches]:
        """Return each prompt with its C continuations."""
        return list(zip(self.prompts, self.continuations, strict=True))

    def prompt_continuation_pairs(self) -> tuple[list[Ids], list[Ids]]:
        """Return N · C prompts and their continuations: each prompt is repeated for each of its words."""
        pairs = zip(self.prompts, self.continuations, strict=True)
        prompts = [prompt for prompt, words in pairs for _ in words]
        return prompts, list(chain(*self.continuations))


def template_obstacle(backbone: Backbone, template: Template, *, max_length: int) -> Iterator[str]:
    """Yield why a backbone cannot fill the gap of a template with its words, and what to do."""
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
            yield from _multi_token_words(backbone, template)
        alone, limit = _token_count(_fill(backbone, template, ("", ""))), min(max_length, backbone.longest_input)
        if alone >= limit:
            yield f"template.text: alone it is {alone} tokens, of {limit} that are read; shorten it or raise max_length"


def _multi_token_words(backbone: Backbone, template: Template) -> Iterator[str]:
    """Yield one message per word of several tokens: a masked model predicts one token for its mask."""
    for word in chain(*template.label_words.values()):
        if len(ids := _encode(backbone, f" {word}")) != 1:
            pieces = ", ".join(backbone.tokenizer.convert_ids_to_tokens(ids))
            yield (
                f"template.words: {word!r} is {len(ids)} tokens of {backbone.name!r} ({pieces}); "
                "choose a word that is one token"
            )


def build_cloze(backbone: Backbone, template: Template, texts: Sequence[Text], *, max_length: int) -> Cloze:
    """Put texts into a template and tokenize them.

    Args:
        backbone: The backbone whose tokenizer is used.
        template: The template with its C words.
        texts: N texts or pairs.
        max_length: Largest number of tokens with the template. A longer text is truncated, of a pair each to half.
    """
    limit = min(max_length, backbone.longest_input)
    filled = [_fill_within(backbone, template, text_parts(text), limit) for text in texts]
    return Cloze(tuple(prompt for prompt, _ in filled), tuple(continuations for _, continuations in filled))


def cloze_excess(backbone: Backbone, template: Template, text: Text, *, max_length: int) -> int:
    """Return the number of tokens by which a text in the template is longer than `build_cloze` allows."""
    filled = _fill(backbone, template, text_parts(text))
    return max(_token_count(filled) - min(max_length, backbone.longest_input), 0)


def _fill_within(backbone: Backbone, template: Template, texts: Sequence[str], limit: int) -> FilledTemplate:
    """Fill the template, with the texts truncated until it has `limit` tokens at most."""
    text_tokens = limit
    while True:
        max_tokens = text_tokens // len(texts)
        filled = _fill(backbone, template, [truncate_text(backbone, text, max_tokens) for text in texts])
        excess = _token_count(filled) - limit
        if excess <= 0 or text_tokens <= 0:
            return filled
        text_tokens -= excess


def _token_count(filled: FilledTemplate) -> int:
    """Tokens of the prompt with its longest continuation."""
    prompt, continuations = filled
    return len(prompt) + max(map(len, continuations))


def _fill(backbone: Backbone, template: Template, texts: Sequence[str]) -> FilledTemplate:
    """The prompt with these texts, and its continuation with each word."""
    tokenizer, words = backbone.tokenizer, [*chain(*template.label_words.values())]
    gap = tokenizer.mask_token or ""
    before, after = template.split_at_gap(*(text.replace(gap, "") if gap else text for text in texts))
    if backbone.architecture == "causal":
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        prompt = tuple(tokenizer(replace_surrogates(before.rstrip()))["input_ids"]) or (start,)
        return prompt, tuple(_encode(backbone, f" {word}{after}") for word in words)
    prefix = " "
    if SENTINEL in tokenizer.get_vocab():
        gap, prefix = SENTINEL, f"{SENTINEL} "
    prompt = tuple(tokenizer(replace_surrogates(before + gap + after))["input_ids"])
    return prompt, tuple(_encode(backbone, prefix + word) for word in words)


def _encode(backbone: Backbone, text: str) -> Ids:
    """The tokens of a text without special tokens."""
    return tuple(backbone.tokenizer(replace_surrogates(text), add_special_tokens=False)["input_ids"])


def answer_word_scores(backbone: Backbone, cloze: Cloze, batch: Sequence[int]) -> Tensor:
    """Score each word in the gap of the texts of a batch, through the backbone as it is now.

    Args:
        backbone: The backbone.
        cloze: N texts with C words each.
        batch: Indices of B texts.

    Returns:
        Log probabilities [B, C], up to a constant per text. A word of several tokens has the sum of theirs.
    """
    chosen = cloze.take(batch)
    if backbone.architecture == "encoder":
        return _mask_logits(backbone, chosen.prompt_word_pairs())
    if backbone.architecture == "causal":
        return continuation_log_probs(backbone, chosen.branches())
    nll, _ = token_nll(backbone, *chosen.prompt_continuation_pairs())
    return -nll.sum(dim=1).reshape(len(batch), -1)


def cloze_inputs(backbone: Backbone, cloze: Cloze) -> Tokens:
    """Return the inputs of the backbone for `answer_word_scores` of all texts."""
    if backbone.architecture == "causal":
        return Tokens(sequence_ids(cloze.branches()), None)
    if backbone.architecture == "encoder":
        return Tokens(cloze.prompts, None)
    return model_inputs(backbone, *cloze.prompt_continuation_pairs())


def forward_word_scores(backbone: Backbone, cloze: Cloze) -> ForwardRequest[Tensor]:
    """Request the words' scores of all texts, on the CPU: [N, C], or [N · C] where each text is read once per word."""
    if backbone.architecture == "encoder":
        items, lengths = cloze.prompt_word_pairs(), [len(prompt) for prompt in cloze.prompts]
        return ForwardRequest(items, lengths, _mask_word_scores, torch.tensor, BATCH)
    if can_share_prompts(backbone):
        lengths = [len(prompt) + max(map(len, words)) for prompt, words in cloze.branches()]
        return ForwardRequest(cloze.branches(), lengths, forward_log_probs, torch.tensor, BATCH)
    return forward_continuation_log_prob(backbone, *cloze.prompt_continuation_pairs())


def _mask_word_scores(backbone: Backbone, items: Sequence[tuple[Ids, Ids]]) -> list[list[float]]:
    """The scores of each item's words; items of one batch may have different numbers of words."""
    scores = _mask_logits(backbone, items).tolist()
    return [row[: len(words)] for row, (_, words) in zip(scores, items, strict=True)]


def _mask_logits(backbone: Backbone, items: Sequence[tuple[Ids, Ids]]) -> Tensor:
    """Return the logits [B, C] of each prompt's words at its mask, C the most words of a prompt."""
    batch = pad_batch(backbone, [prompt for prompt, _ in items])
    rows, columns = (batch["input_ids"] == backbone.tokenizer.mask_token_id).nonzero(as_tuple=True)
    with backbone.autocast():
        logits: Tensor = backbone.language_model(**batch).logits
    return logits[rows, columns].float().gather(1, pad_ids(backbone, [words for _, words in items], 0))
