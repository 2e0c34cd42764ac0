"""The catalogue of task kinds: keys, metrics and targets of each, and the class that implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tasks.plugins import PluginRegistry, entry_points_in

TargetType = Literal["labels", "numbers", "answers", "texts"]
"""Class labels, finite numbers, spans of a passage, or texts to generate (with references)."""


@dataclass(frozen=True)
class KindSchema:
    """A kind of task as a stream file states it; no torch is imported.

    Attributes:
        implementation: The subclass of `continual.kinds.Kind`, as `module:Class`; imported when first used.
        targets: The type of the targets.
        target_column: The key of the spec that names the target column.
        target_description: The column's content, in words, for messages.
        metrics: The built-in metrics, the default first.
        optional: Further keys that only this kind accepts.
    """

    implementation: str
    targets: TargetType
    target_column: str
    target_description: str
    metrics: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def allowed_metrics(self, kind: str) -> tuple[str, ...]:
        """Return the metrics of `kind`, including those that other packages add."""
        return (*self.metrics, *entry_points_in(f"continual.metrics.{kind}"))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that only this kind accepts, the target column's first."""
        return (self.target_column, *self.optional)


def _check(plugin: object) -> KindSchema | str:
    return plugin if isinstance(plugin, KindSchema) else "a tasks.KindSchema"


# fmt: off
KIND_SCHEMAS = PluginRegistry[KindSchema]("kind", "continual.kinds", check=_check, built_in={
    "classification": KindSchema(
        "continual.kinds.classification:Classification",
        "labels", "label", "labels", ("accuracy", "macro_f1", "mcc", "f1", "auroc"),
        ("template", "readout"),
    ),
    "regression": KindSchema(
        "continual.kinds.regression:Regression",
        "numbers", "label", "numbers", ("pearson", "spearman", "r2"), ("readout",),
    ),
    "span": KindSchema(
        "continual.kinds.span:Span",
        "answers", "answers", "answers", ("f1", "exact_match"),
    ),
    "generation": KindSchema(
        "continual.kinds.generation:Generation",
        "texts", "target", "targets",
        ("chrf", "bleu", "rouge_l", "exact_match", "sari", "normalized_match", "numeric_match"),
        ("references", "prompt", "completion", "messages", "system", "instruction", "chat_template", "truncate"),
    ),
})
# fmt: on
