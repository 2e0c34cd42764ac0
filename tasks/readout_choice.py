"""Where the head of a task reads, where its file says so."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.strict_model import StrictModel


class ReadoutChoice(StrictModel):
    """Pooling and layer of the vectors that a head reads.

    Attributes:
        pooling: `mean` of the states of a text's tokens, the first (`cls`) or the `last`.
        layers: How many of the backbone's lowest layers compute the states; None for all.

    >>> ReadoutChoice(pooling="last").layers is None
    True
    """

    pooling: Literal["mean", "cls", "last"]
    layers: Annotated[int, Field(ge=1)] | None = None
