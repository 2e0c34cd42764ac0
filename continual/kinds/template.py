"""Classification by template: the frozen language model fills a gap with the word of a label; there is no head.

    p(label | text) = softmax over labels of log p(word of the label | text with a gap)

Zero epochs are zero-shot: the language model as it is. Gao et al. (2021), "Making Pre-trained Language Models Better
Few-shot Learners" (arXiv:2012.15723).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

from torch import Tensor
from torch.nn import functional as F

from continual.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features import Tokens, tokenize
from continual.kinds.classification import most_probable, next_label, numbered
from continual.kinds.cloze import Cloze, cloze, fits, fitting, read_for_fits, unfit
from continual.kinds.kind import Answer, Kind, Outputs, Seen, Start
from continual.reading import Reading
from tasks import Rows, TaskData, TaskSpec, Template


@dataclass(frozen=True)
class Gapped:
    """Rows with their labels as texts, and as numbers [N], and their texts with a gap."""

    tokens: Tokens
    truth: tuple[str, ...]
    classes: Tensor
    gaps: Cloze


@final
@dataclass(frozen=True)
class Templated(Kind[Gapped]):
    """template: with its words in the order of the labels."""

    scored: ClassVar[str] = "classification"
    generates: ClassVar[bool] = True

    template: Template

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.template.words)

    @classmethod
    def misfits(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        assert spec.template  # what makes a task one of this kind
        assert spec.budget  # what `Stream.resolved` fills in
        yield from unfit(backbone, spec.template, max_length=spec.budget.max_length)

    @classmethod
    def of(cls, backbone: Backbone, data: TaskData) -> Self:
        template = data.spec.template
        assert template  # what makes a task one of this kind
        words: Mapping[str, str] = {label: template.words[label] for label in data.labels}
        return cls(template.model_copy(update={"words": words}))

    def settings(self) -> dict[str, Any]:
        return {"template": self.template.model_dump(mode="json")}

    def prepare(self, backbone: Backbone, rows: Rows, *, max_length: int) -> Gapped:
        return Gapped(
            tokenize(backbone, rows.texts, max_length=max_length),
            rows.labels,
            numbered(rows.labels, self.labels),
            cloze(backbone, self.template, rows.texts, max_length=max_length),
        )

    def classes(self, rows: Gapped) -> tuple[Tensor, int]:
        return rows.classes, len(self.labels)

    def blank(self, backbone: Backbone) -> Head | None:
        return None

    def start(self, rows: Seen[Gapped], held_out: Seen[Gapped]) -> Start:
        """No head; the quality of a held-out row is whether it is answered rightly."""
        logits = self.outputs(held_out, None)["logits"]
        return Start(None, (logits.argmax(dim=1) == held_out.rows.classes).double())

    def carried(self, start: Start, head: Head, held_out: Seen[Gapped]) -> Start:
        return start

    def loss(self, backbone: Backbone, delta: Delta, rows: Gapped, batch: Sequence[int]) -> Tensor:
        """Mean cross entropy in nats over the labels."""
        return F.cross_entropy(fits(backbone, rows.gaps, batch), rows.classes[batch].to(backbone.device))

    def reads(self, backbone: Backbone, rows: Gapped) -> Tokens:
        return read_for_fits(backbone, rows.gaps)

    def weight(self, rows: Gapped, batch: Sequence[int]) -> float:
        return len(batch)

    def reading(self, seen: Seen[Gapped], head: Head | None) -> Reading[Tensor]:
        return fitting(seen.backbone, seen.rows.gaps)

    def outputs_of(self, rows: Gapped, head: Head | None, found: Tensor) -> Outputs:
        """logits [N, C]."""
        return {"logits": found.reshape(-1, len(self.labels))}

    def answers(self, backbone: Backbone, outputs: Outputs, rows: Gapped) -> list[Answer]:
        return most_probable(outputs, self.labels)

    def wrong(self, truth: Sequence[Any]) -> list[Any]:
        return next_label(truth, self.labels)
