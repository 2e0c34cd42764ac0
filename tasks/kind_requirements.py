"""Required keys, optional keys and metrics of each kind of task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.plugins import entry_points_in

Kind = Literal["classification", "regression", "generation", "span"]


@dataclass(frozen=True)
class KindSchema:
    """The keys and metrics of one kind of task.

    Attributes:
        target_column: The key of the spec that names the target column.
        target_description: The column's content, in words, for messages.
        metrics: The built-in metrics, the default first.
        optional: Further keys that this kind accepts and others do not.
    """

    target_column: str
    target_description: str
    metrics: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def allowed_metrics(self, kind: Kind) -> tuple[str, ...]:
        """Return the metrics of `kind`, including those that other packages add."""
        return (*self.metrics, *entry_points_in(f"continual.metrics.{kind}"))

    @property
    def keys(self) -> tuple[str, ...]:
        """The spec keys that depend on the kind, the target column's first."""
        return (self.target_column, *self.optional)


KIND_SCHEMAS: Mapping[Kind, KindSchema] = {
    "classification": KindSchema("label", "labels", ("accuracy", "macro_f1", "mcc"), ("template",)),
    "regression": KindSchema("label", "numbers", ("pearson", "spearman", "r2")),
    "span": KindSchema("answers", "answers", ("f1", "exact_match")),
    "generation": KindSchema("target", "targets", ("chrf", "bleu", "rouge_l", "exact_match"), ("references",)),
}
