"""What each kind of task must say, may say, and can be scored by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.plugins import entry_points_in

Kind = Literal["classification", "regression", "generation", "span"]


@dataclass(frozen=True)
class KindSchema:
    """column: the key that names the column of what is right · holds: what that column holds, in words ·
    metrics: those allowed, the first being the default · optional: keys that other kinds have no use for.
    """

    target_column: str
    target_description: str
    metrics: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def allowed(self, kind: Kind) -> tuple[str, ...]:
        """The metrics, those of other packages among them."""
        return (*self.metrics, *entry_points_in(f"continual.metrics.{kind}"))

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.target_column, *self.optional)


KIND_SCHEMAS: Mapping[Kind, KindSchema] = {
    "classification": KindSchema("label", "labels", ("accuracy", "macro_f1", "mcc"), ("template",)),
    "regression": KindSchema("label", "numbers", ("pearson", "spearman", "r2")),
    "span": KindSchema("answers", "answers", ("f1", "exact_match")),
    "generation": KindSchema("target", "targets", ("chrf", "bleu", "rouge_l", "exact_match"), ("references",)),
}
