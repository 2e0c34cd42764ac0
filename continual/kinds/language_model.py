"""Log probabilities of continuations by the frozen language model.

Shapes: B texts, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.features.forward import ForwardRequest
from continual.features.tokens import Tokens
from continual.generation.padding import pad_batch, pad_ids
from continual.generation.sampling import Ids

BATCH = 32
IGNORE_INDEX = -100  # label of a token that has no loss


def language_model_obstacle(backbone: Backbone, *, what: str) -> str | None:
    """Return why a backbone cannot write text, and what to do, or None where it can.

    Args:
        backbone: The backbone.
        what: The subject of the message, such as "generation".
    """
    if backbone.architecture == "encoder":
        reason = "is an encoder, which only reads"
    elif backbone.language_model is None:
        reason = "lacks its language modelling head"
    elif backbone.family.is_recurrent:
        reason = "has layers of linear attention, whose states rows of other lengths cannot join while they are written"
    else:
        return None
    return (
        f"{what} needs a backbone that writes text, and {backbone.name!r} {reason}; "
        "give a causal or an encoder-decoder one with --backbone, such as gpt2 or t5-small"
    )


def token_nll(backbone: Backbone, prompts: Sequence[Ids], continuations: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Compute the negative log likelihood of continuations through the backbone, token by token.

    The caller has attached the delta, if any.

    Returns:
        −log p of the tokens of each continuation, with zeros between them [B, K], in nats; and their numbers [B].
    """
    logits_and_labels = _causal_logits if backbone.architecture == "causal" else _seq2seq_logits
    with backbone.autocast():
        logits, labels = logits_and_labels(backbone, prompts, continuations)
    scored = labels != IGNORE_INDEX
    nll = F.cross_entropy(logits[scored].float(), labels[scored], reduction="none")
    return torch.zeros_like(labels, dtype=nll.dtype).masked_scatter(scored, nll), scored.sum(dim=1)


def model_inputs(backbone: Backbone, prompts: Sequence[Ids], continuations: Sequence[Ids]) -> Tokens:
    """Return the input of `token_nll` for each pair; of an encoder-decoder, the prompt alone."""
    if backbone.architecture != "causal":
        return Tokens(tuple(prompts), None)
    pairs = zip(prompts, continuations, strict=True)
    return Tokens(tuple((*prompt, *continuation) for prompt, continuation in pairs), None)


def forward_continuation_log_prob(
    backbone: Backbone, prompts: Sequence[Ids], continuations: Sequence[Ids]
) -> ForwardRequest[Tensor]:
    """Request the log probability of one continuation of each prompt: [N], in nats, on the CPU."""
    one_input = backbone.architecture == "causal"  # prompt and continuation are one sequence
    pairs = list(zip(prompts, continuations, strict=True))
    lengths = [len(prompt) + one_input * len(continuation) for prompt, continuation in pairs]
    max_new_tokens = 0 if one_input else max(map(len, continuations), default=0)
    return ForwardRequest(pairs, lengths, _continuation_log_probs, torch.tensor, BATCH, max_new_tokens)


def _continuation_log_probs(backbone: Backbone, pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
    prompts, continuations = zip(*pairs, strict=True)
    log_probs: list[float] = (-token_nll(backbone, prompts, continuations)[0].sum(dim=1)).tolist()
    return log_probs


def _causal_logits(backbone: Backbone, prompts: Sequence[Ids], continuations: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Logits [B, K, V] and labels [B, K] of the next tokens, at the K positions where a row has a label.

    A vocabulary is so large that logits of the other positions would take longer than the layers.
    """
    inputs = model_inputs(backbone, prompts, continuations).ids
    pairs = zip(prompts, continuations, strict=True)
    labels = [(*[IGNORE_INDEX] * len(prompt), *continuation) for prompt, continuation in pairs]
    next_labels = pad_ids(backbone, labels, IGNORE_INDEX)[:, 1:]
    positions = (next_labels != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
    logits: Tensor = backbone.language_model(
        **pad_batch(backbone, inputs), use_cache=False, logits_to_keep=positions
    ).logits
    return logits, next_labels[:, positions]


def _seq2seq_logits(backbone: Backbone, prompts: Sequence[Ids], continuations: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] and labels [B, T] of the decoder."""
    labels = pad_ids(backbone, continuations, IGNORE_INDEX)
    decoder_input_ids = backbone.language_model.prepare_decoder_input_ids_from_labels(labels)
    logits: Tensor = backbone.language_model(
        **pad_batch(backbone, prompts), decoder_input_ids=decoder_input_ids, use_cache=False
    ).logits
    return logits, labels
