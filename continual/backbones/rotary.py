"""Rotation of keys by a model's own rotary position embedding.

Su et al. (2021), "RoFormer", arXiv:2104.09864: a query q at position t and a key k at s are rotated by R_t and R_s.
Their score (R_t q) · (R_s k) depends on t − s alone if the angles are the same for texts of every length.

Shapes: P keys, H heads, d the size of a head.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

FIXED_ANGLES = ("default", "linear", "yarn", "llama3")  # types whose angles do not depend on the length of the text
APPLY = "apply_rotary_pos_emb"  # transformers' function beside every attention with rotary positions


def can_rotate_keys(embedding: nn.Module, attention: nn.Module) -> bool:
    """Return whether a module that takes positions rotates an attention's keys by fixed angles."""
    return getattr(embedding, "rope_type", None) in FIXED_ANGLES and hasattr(_module_of(attention), APPLY)


@torch.no_grad()
def rotate_keys(embedding: nn.Module, attention: nn.Module, keys: Tensor, *, position: int) -> Tensor:
    """Return R_p k [P, H · d], whose scores with queries at t + p are those of keys k with the same queries at t.

    In a layer that rotates nothing, they are the keys themselves.

    Args:
        embedding: The model's rotary embedding, one for which `can_rotate_keys` is true.
        attention: The attention.
        keys: The keys, as they are attended to.
        position: p.
    """
    if not getattr(attention, "use_rope", True):
        return keys
    rotary: Any = embedding
    width: int = getattr(attention, "head_dim", None) or getattr(attention, "head_size")  # noqa: B009
    by_head = keys.view(1, len(keys), -1, width).transpose(1, 2).to(rotary.inv_freq.device)
    positions = torch.full((1, len(keys)), position, device=by_head.device)
    rotated = getattr(_module_of(attention), APPLY)(by_head, by_head, *rotary(by_head, position_ids=positions))[1]
    scaled: Tensor = rotated / rotary.attention_scaling  # a factor of every query and key, not of cached keys alone
    return scaled.transpose(1, 2).reshape(keys.shape).to(keys.device)


def _module_of(attention: nn.Module) -> Any:
    return sys.modules[type(attention).__module__]
