"""What a delta says of fixed inputs: kept when it is registered, and asked for again by `continual verify`.

The inputs are no user's: tokens of the backbone's vocabulary, drawn once and stored with the answer, so that neither
the way of drawing nor the tokenizer has to stay as it is. All is computed in float32, whatever the delta learned in.
"""

import random
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached
from continual.features.pooling import pool, pooled_features
from continual.features.tokens import Tokens, pad, reserve_tokens
from continual.kinds import backbone_for, kind_of_delta
from continual.serialization import deserialize, serialize

PROBE_LENGTHS = (3, 8, 5, 8)  # tokens of each input; every backbone takes so many
# Of the largest number stored. Sums in another order differ by some units of float32's last place for each layer;
# a delta that was changed, or another library's mistake, by far more.
TOLERANCE = 1e-3


def probe_outputs(backbone: Backbone, delta: Delta) -> bytes:
    """What the delta says of fixed inputs now, with the inputs, as a blob."""
    tokens = _drawn(backbone)
    ids = torch.tensor([[*row, *[-1] * (max(PROBE_LENGTHS) - len(row))] for row in tokens.ids])
    return serialize({"ids": ids, **_said(backbone, delta, tokens)})


def probe_difference(backbone: Backbone, delta: Delta, stored: bytes) -> float:
    """By how much what the delta says of the stored inputs differs from what it said: a share of the largest number.

    Zero is the same to the bit. Infinity, where not even the shapes are alike.
    Raises BlobError for what is no replay, DeltaError for a delta that does not fit the backbone.
    """
    before, _ = deserialize(stored, what="replay")
    rows = before.pop("ids", torch.zeros(0, 0, dtype=torch.long)).tolist()
    now = _said(backbone, delta, _tokens(backbone, [[i for i in row if i >= 0] for row in rows])) if rows else {}
    if not now or {key: t.shape for key, t in now.items()} != {key: t.shape for key, t in before.items()}:
        return float("inf")
    return max(_difference(before[key], now[key]) for key in now)


def _difference(before: Tensor, now: Tensor) -> float:
    if torch.equal(before, now):
        return 0.0
    share = float((before - now).abs().max() / before.abs().max())
    return share if share == share else float("inf")  # what is no number any more is as wrong as can be


def _drawn(backbone: Backbone) -> Tokens:
    draw, special = random.Random(0), set(backbone.tokenizer.all_special_ids)
    count = min(len(backbone.tokenizer), backbone.model.get_input_embeddings().num_embeddings)
    vocabulary = [number for number in range(count) if number not in special]
    return _tokens(backbone, [[draw.choice(vocabulary) for _ in range(length)] for length in PROBE_LENGTHS])


def _tokens(backbone: Backbone, rows: list[list[int]]) -> Tokens:
    typed = "embed.type" in backbone.family.stack.sites
    return Tokens(tuple(map(tuple, rows)), tuple((0,) * len(row) for row in rows) if typed else None)


@torch.inference_mode()
def _said(backbone: Backbone, delta: Delta, tokens: Tokens) -> Mapping[str, Tensor]:
    """Pooled vectors [N, D] through the delta; its head's outputs [N, C], or the vectors of a decoder that answers."""
    own = replace(backbone_for(reserve_tokens(backbone, delta.settings), kind_of_delta(delta)), dtype=torch.float32)
    batch = pad(own, tokens, range(len(tokens)))
    with attached(own, delta.to(own.device)):
        vectors = pooled_features(own, batch, delta.head.pooling if delta.head else own.pooling)
        said = {"vectors": vectors}
        if own.edits_decoder and own.family.decoder:
            ask = {"decoder_input_ids": batch["input_ids"], "output_hidden_states": True, "use_cache": False}
            states = own.language_model(**batch, **ask).decoder_hidden_states[-1]
            said["decoder"] = pool(states, batch["attention_mask"], "mean")
    if delta.head:
        said["outputs"] = delta.head.to(own.device)(vectors)
    return {name: tensor.float().cpu() for name, tensor in said.items()}
