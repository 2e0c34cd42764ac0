"""Outputs of a delta for fixed inputs: stored at registration, recomputed by `continual verify`.

The inputs are random tokens of the backbone's vocabulary, drawn once and stored with the outputs, so that neither the
generator nor the tokenizer has to stay as it is. They are computed in the type that the delta was learned in, which is
stored with them unless it is float32.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached
from continual.features.pooling import pool, pooled_features
from continual.features.tokens import Tokens, pad, reserve_tokens
from continual.kinds import backbone_for, kind_of_delta
from continual.serialization import deserialize, serialize

PROBE_LENGTHS = (3, 8, 5, 8)  # tokens of each input; few enough for every backbone
# Of the largest number stored. Sums in another order differ by some units of the type's last place for each layer;
# a delta that was changed, or another library's mistake, by far more than that of float32.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
DTYPE = "dtype"  # key of the metadata


def probe_outputs(backbone: Backbone, delta: Delta) -> bytes:
    """Compute a delta's outputs for fixed inputs; return inputs and outputs as a blob."""
    tokens = _random_tokens(backbone)
    ids = torch.tensor([[*row, *[-1] * (max(PROBE_LENGTHS) - len(row))] for row in tokens.ids])
    metadata = {} if backbone.dtype == torch.float32 else {DTYPE: _name(backbone.dtype)}
    return serialize({"ids": ids, **_outputs(backbone, delta, tokens)}, metadata)


@dataclass(frozen=True)
class ProbeDifference:
    """How far a delta's outputs for fixed inputs differ from the stored ones.

        value = max |stored − computed| / max |stored|

    Attributes:
        value: 0 for equal outputs to the bit, infinity for outputs of other shapes or that are not finite.
        tolerance: The largest value that rounding explains, in the type that was computed in.
    """

    value: float
    tolerance: float

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains the difference."""
        return self.value <= self.tolerance


def probe_difference(backbone: Backbone, delta: Delta, stored: bytes) -> ProbeDifference:
    """Compute a delta's outputs for the stored inputs, and compare them with the stored outputs.

    Args:
        backbone: The backbone, in the type `probe_dtype(stored)`.
        delta: The delta.
        stored: What `probe_outputs` returned.

    Raises:
        BlobError: `stored` is not what `probe_outputs` returned.
        DeltaError: The delta does not fit the backbone.
    """
    before, _ = deserialize(stored, what="replay")
    tolerance = TOLERANCE[_name(backbone.dtype)]
    rows = before.pop("ids", torch.zeros(0, 0, dtype=torch.long)).tolist()
    inputs = _tokens(backbone, [[token for token in row if token >= 0] for row in rows])
    computed = _outputs(backbone, delta, inputs) if rows else {}
    shapes, stored_shapes = ({key: tensor.shape for key, tensor in part.items()} for part in (computed, before))
    if not computed or shapes != stored_shapes:
        return ProbeDifference(math.inf, tolerance)
    return ProbeDifference(max(_relative_difference(before[key], computed[key]) for key in computed), tolerance)


def probe_dtype(stored: bytes) -> str:
    """Return the type that stored outputs were computed in: float32 or bfloat16.

    Raises:
        BlobError: `stored` is not what `probe_outputs` returned.
    """
    return str(deserialize(stored, what="replay")[1].get(DTYPE, "float32"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _relative_difference(stored: Tensor, computed: Tensor) -> float:
    if torch.equal(stored, computed):
        return 0.0
    difference = float((stored - computed).abs().max() / stored.abs().max())
    return math.inf if math.isnan(difference) else difference


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
    reference = backbone_for(reserve_tokens(backbone, delta.settings), kind_of_delta(delta))
    batch = pad(reference, tokens, range(len(tokens)))
    with attached(reference, delta.to(reference.device)):
        vectors = pooled_features(reference, batch, delta.head.readout if delta.head else reference.readout)
        outputs = {"vectors": vectors}
        if reference.generates and reference.family.decoder:
            arguments = {"decoder_input_ids": batch["input_ids"], "output_hidden_states": True, "use_cache": False}
            with reference.autocast():
                states = reference.language_model(**batch, **arguments).decoder_hidden_states[-1]
            outputs["decoder"] = pool(states, batch["attention_mask"], "mean")
    if delta.head:
        outputs["outputs"] = delta.head.to(reference.device)(vectors)
    return {name: tensor.float().cpu() for name, tensor in outputs.items()}
