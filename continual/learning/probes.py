"""Outputs of a delta for fixed inputs: stored at registration, recomputed by `continual verify`.

The inputs are random tokens of the backbone's vocabulary, drawn once and stored with the outputs, so that neither the
generator nor the tokenizer has to stay as it is. All is computed in float32, also where the delta was learned in
another type.
"""

import math
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

PROBE_LENGTHS = (3, 8, 5, 8)  # tokens of each input; few enough for every backbone
# Of the largest number stored. Sums in another order differ by some units of float32's last place for each layer;
# a delta that was changed, or another library's mistake, by far more.
TOLERANCE = 1e-3


def probe_outputs(backbone: Backbone, delta: Delta) -> bytes:
    """Compute a delta's outputs for fixed inputs; return inputs and outputs as a blob."""
    tokens = _random_tokens(backbone)
    ids = torch.tensor([[*row, *[-1] * (max(PROBE_LENGTHS) - len(row))] for row in tokens.ids])
    return serialize({"ids": ids, **_outputs(backbone, delta, tokens)})


def probe_difference(backbone: Backbone, delta: Delta, stored: bytes) -> float:
    """Compute how far a delta's outputs for the stored inputs differ from the stored outputs.

        max |stored − computed| / max |stored|

    Returns:
        0 for equal outputs to the bit, infinity for outputs of other shapes or that are not finite.

    Raises:
        BlobError: `stored` is not what `probe_outputs` returned.
        DeltaError: The delta does not fit the backbone.
    """
    before, _ = deserialize(stored, what="replay")
    rows = before.pop("ids", torch.zeros(0, 0, dtype=torch.long)).tolist()
    inputs = _tokens(backbone, [[token for token in row if token >= 0] for row in rows])
    computed = _outputs(backbone, delta, inputs) if rows else {}
    shapes, stored_shapes = ({key: tensor.shape for key, tensor in part.items()} for part in (computed, before))
    if not computed or shapes != stored_shapes:
        return float("inf")
    return max(_relative_difference(before[key], computed[key]) for key in computed)


def _relative_difference(stored: Tensor, computed: Tensor) -> float:
    if torch.equal(stored, computed):
        return 0.0
    difference = float((stored - computed).abs().max() / stored.abs().max())
    return float("inf") if math.isnan(difference) else difference


def _random_tokens(backbone: Backbone) -> Tokens:
    draw, special = random.Random(0), set(backbone.tokenizer.all_special_ids)
    count = min(len(backbone.tokenizer), backbone.model.get_input_embeddings().num_embeddings)
    vocabulary = [number for number in range(count) if number not in special]
    return _tokens(backbone, [[draw.choice(vocabulary) for _ in range(length)] for length in PROBE_LENGTHS])


def _tokens(backbone: Backbone, rows: list[list[int]]) -> Tokens:
    typed = "embed.type" in backbone.family.stack.sites
    return Tokens(tuple(map(tuple, rows)), tuple((0,) * len(row) for row in rows) if typed else None)


@torch.inference_mode()
def _outputs(backbone: Backbone, delta: Delta, tokens: Tokens) -> Mapping[str, Tensor]:
    """Return pooled vectors [N, D], the head's outputs [N, C], and a decoder's pooled states [N, D]."""
    reference = replace(
        backbone_for(reserve_tokens(backbone, delta.settings), kind_of_delta(delta)), dtype=torch.float32
    )
    batch = pad(reference, tokens, range(len(tokens)))
    with attached(reference, delta.to(reference.device)):
        vectors = pooled_features(reference, batch, delta.head.pooling if delta.head else reference.pooling)
        outputs = {"vectors": vectors}
        if reference.generates and reference.family.decoder:
            arguments = {"decoder_input_ids": batch["input_ids"], "output_hidden_states": True, "use_cache": False}
            states = reference.language_model(**batch, **arguments).decoder_hidden_states[-1]
            outputs["decoder"] = pool(states, batch["attention_mask"], "mean")
    if delta.head:
        outputs["outputs"] = delta.head.to(reference.device)(vectors)
    return {name: tensor.float().cpu() for name, tensor in outputs.items()}
