"""What the frozen language model says of texts that go on: how probable a continuation is, and which one it writes.

Shapes: B texts, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from continual.backbones.backbone import Backbone
from continual.features.forward import ForwardRequest
from continual.features.tokens import Tokens

BATCH = 32
IGNORE_INDEX = -100  # the number that says of a token that it is not learned

Ids = tuple[int, ...]
TokenBatchCallback = Callable[[Sequence[Ids]], None]  # is told what is written behind each prompt


def language_model_obstacle(backbone: Backbone, *, what: str) -> str | None:
    """Why a backbone cannot write text, and what to do; None where it can."""
    if backbone.architecture == "encoder":
        reason = "is an encoder, which only reads"
    elif backbone.language_model is None:
        reason = "lacks its language modelling head"
    else:
        return None
    return (
        f"{what} needs a backbone that writes text, and {backbone.name!r} {reason}; "
        "give a causal or an encoder-decoder one with --backbone, such as gpt2 or t5-small"
    )


def token_nll(backbone: Backbone, prompts: Sequence[Ids], continuations: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Minus the log probability of each token of the continuations [B, T], 0 elsewhere, and how many there are [B].

    The model reads prompt and continuation, as they are: through whatever is attached.
    """
    score = _causal_logits if backbone.architecture == "causal" else _seq2seq_logits
    with backbone.autocast():
        logits, labels = score(backbone, prompts, continuations)
    found = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")
    return found, (labels != IGNORE_INDEX).sum(dim=1)


def model_inputs(backbone: Backbone, prompts: Sequence[Ids], continuations: Sequence[Ids]) -> Tokens:
    """What the model reads of these, an encoder-decoder with its encoder."""
    if backbone.architecture != "causal":
        return Tokens(tuple(prompts), None)
    return Tokens(tuple((*prompt, *end) for prompt, end in zip(prompts, continuations, strict=True)), None)


def forward_continuation_log_prob(
    backbone: Backbone, prompts: Sequence[Ids], ends: Sequence[Ids]
) -> ForwardRequest[Tensor]:
    """To read how probable a continuation of each prompt is: the logarithms [N], in nats, on the CPU."""
    whole = backbone.architecture == "causal"  # which reads prompt and continuation as one text
    lengths = [len(prompt) + whole * len(end) for prompt, end in zip(prompts, ends, strict=True)]
    written = 0 if whole else max(map(len, ends), default=0)
    return ForwardRequest(list(zip(prompts, ends, strict=True)), lengths, _continued, torch.tensor, BATCH, written)


def _continued(backbone: Backbone, items: Sequence[tuple[Ids, Ids]]) -> list[float]:
    prompts, ends = zip(*items, strict=True)
    found: list[float] = (-token_nll(backbone, prompts, ends)[0].sum(dim=1)).tolist()
    return found


def _causal_logits(backbone: Backbone, prompts: Sequence[Ids], continuations: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    whole = model_inputs(backbone, prompts, continuations).ids
    labels = [(*[IGNORE_INDEX] * len(prompt), *end) for prompt, end in zip(prompts, continuations, strict=True)]
    logits: Tensor = backbone.language_model(**pad_batch(backbone, whole), use_cache=False).logits
    return logits[:, :-1], pad_ids(backbone, labels, IGNORE_INDEX)[:, 1:]


def _seq2seq_logits(backbone: Backbone, prompts: Sequence[Ids], continuations: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    labels = pad_ids(backbone, continuations, IGNORE_INDEX)
    shifted = backbone.language_model.prepare_decoder_input_ids_from_labels(labels)
    logits: Tensor = backbone.language_model(
        **pad_batch(backbone, prompts), decoder_input_ids=shifted, use_cache=False
    ).logits
    return logits, labels


def pad_batch(backbone: Backbone, ids: Sequence[Ids], *, left: bool = False) -> dict[str, Tensor]:
    """Ids and mask [B, T] of texts, padded on the right or the left."""
    mask = [(1,) * len(own) for own in ids]
    return {
        "input_ids": pad_ids(backbone, ids, backbone.tokenizer.pad_token_id, left=left),
        "attention_mask": pad_ids(backbone, mask, 0, left=left),
    }


def pad_ids(backbone: Backbone, ids: Sequence[Ids], fill: int, *, left: bool = False) -> Tensor:
    """Ids [B, T], those of shorter texts filled up."""
    width = max(map(len, ids))
    rows = [([fill] * (width - len(own)), list(own)) for own in ids]
    return torch.tensor([gap + own if left else own + gap for gap, own in rows], device=backbone.device)


@torch.inference_mode()
def generate_greedy(
    backbone: Backbone,
    prompts: Sequence[Ids],
    *,
    longest: int,
    use_cache: bool = True,
    tell: TokenBatchCallback | None = None,
) -> list[Ids]:
    """What the model goes on with, token by token the most probable, up to its end token or `longest` tokens.

    use_cache: whether keys and values of earlier tokens are kept or computed again; the tokens are the same · tell: is
    told what is written so far, after every token.
    """
    end, causal = backbone.tokenizer.eos_token_id, backbone.architecture == "causal"
    plain = GenerationConfig(
        max_new_tokens=longest,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        use_cache=use_cache,
        eos_token_id=end,
        pad_token_id=backbone.tokenizer.pad_token_id,
    )
    # A causal model goes on at the right edge: texts of one batch must end there together.
    batch = pad_batch(backbone, prompts, left=causal)
    with backbone.autocast():
        found = backbone.language_model.generate(**batch, generation_config=plain, streamer=tell and _Steps(tell, end))
    skipped = batch["input_ids"].shape[1] if causal else 1  # the prompt, or the token that starts a decoder
    return [_ended(row, end) for row in found[:, skipped:].tolist()]


def _ended(ids: Sequence[int], end: int) -> Ids:
    """The tokens up to the first end token, which belongs to them."""
    return tuple(ids[: ids.index(end) + 1]) if end in ids else tuple(ids)


class _Steps(BaseStreamer):  # type: ignore[misc]  # transformers' classes are not typed
    """Tells after every token what is written so far."""

    def __init__(self, tell: TokenBatchCallback, end: int) -> None:
        self._tell, self._end = tell, end
        self._steps: list[list[int]] = []

    def put(self, value: Tensor) -> None:
        """Take the prompts [B, T], and then one token of each row [B]."""
        if value.dim() == 1:
            self._steps.append(value.tolist())
            self._tell([_ended(ids, self._end) for ids in zip(*self._steps, strict=True)])

    def end(self) -> None:
        """Nothing more is written."""
