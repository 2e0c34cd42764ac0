"""The heads of several tasks as one, so that they are trained together and are in play one at a time."""

from collections.abc import Sequence
from itertools import accumulate

import torch

from continual.deltas import Head


def stack_heads(heads: Sequence[Head | None]) -> Head | None:
    """One head whose outputs are those of all heads, one behind the other; None where there are none."""
    own = [head for head in heads if head]
    if not own:
        return None
    weight, bias = (torch.cat([getattr(head, name) for head in own]) for name in ("weight", "bias"))
    return Head(weight, bias, tuple(label for head in own for label in head.labels), own[0].pooling)


def split_head(whole: Head | None, like: Sequence[Head | None]) -> tuple[Head | None, ...]:
    """What `stacked` made one of, each a view of its own rows; `like` says how many those are."""
    ends = accumulate((len(head.labels) if head else 0 for head in like), initial=0)
    return tuple(_rows(whole, begin, head) for begin, head in zip(ends, like, strict=False))


def _rows(whole: Head | None, begin: int, like: Head | None) -> Head | None:
    if whole is None or like is None:
        return None
    own = slice(begin, begin + len(like.labels))
    return Head(whole.weight[own], whole.bias[own], like.labels, whole.pooling)
