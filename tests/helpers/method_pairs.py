"""Pairs of methods and families that cover both, since each method on every family takes very long."""

from collections.abc import Iterable, Sequence

import pytest

from continual.deltas import METHODS
from tests.helpers.tiny_models import SUITE_FAMILIES

# One family of each way in which modules are arranged: a norm behind a block or before it, fused projections, gates,
# a second stack. Training and refusals beyond an edit's own outputs and gradients depend on no more of a family.
ARRANGEMENTS = ("bert", "modernbert", "gpt2", "llama", "t5")
TURNS = 3


def covering_pairs(
    methods: Iterable[str | None], families: Sequence[str] = SUITE_FAMILIES
) -> list[tuple[str, str | None]]:
    """Return (family, method): each method on every arrangement, and on the other families but, in turn, a third."""
    others = [family for family in families if family not in ARRANGEMENTS]
    chosen = [family for family in families if family in ARRANGEMENTS]
    left_out = [others[turn::TURNS] for turn in range(TURNS)]
    return [
        (family, method)
        for number, method in enumerate(methods)
        for family in [*chosen, *others]
        if family not in left_out[number % TURNS]
    ]


every_method = pytest.mark.parametrize(("backbone", "method"), covering_pairs(METHODS), indirect=["backbone"])
