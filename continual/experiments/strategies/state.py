"""What a strategy has after a task: all that it goes on from, kept as one blob."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from continual.deltas import Delta, Head, delta_from_tensors
from continual.experiments.strategies.fisher import FisherImportance
from continual.kinds import Outputs
from continual.serialization import deserialize, serialize
from registry.errors import BlobError


@dataclass(frozen=True)
class StrategyState:
    """body: what all tasks share, with the last one's head; None where they share nothing · heads: of the tasks
    learned, in order · outputs: what is said of each task's test rows, by its number · importance: of the weights to
    earlier tasks, None where that is not kept · parameters: that answer all tasks · size: bytes of all that is kept.
    """

    shared_delta: Delta | None = None
    heads: tuple[Head | None, ...] = ()
    outputs: Mapping[int, Outputs] = field(default_factory=dict)
    importance: FisherImportance | None = None
    parameters: int = 0
    size: int = 0

    def to_bytes(self) -> bytes:
        """The state as a safetensors file."""
        body, matters = self.shared_delta, self.importance
        about: dict[str, Any] = {
            "body": body and {"about": body.metadata(), "order": [*body.tensors()]},
            "heads": [head and {"labels": head.labels, "pooling": head.pooling} for head in self.heads],
            "outputs": {number: [*outputs] for number, outputs in self.outputs.items()},
            # The order of a file's tensors is not kept, and sums over them depend on it.
            "importance": matters and {"order": [*matters.fisher], "rest": matters.constant},
            "parameters": self.parameters,
            "size": self.size,
        }
        return serialize({name: tensor.clone() for name, tensor in self._tensors()}, about)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        if self.shared_delta:
            yield from ((f"body/{key}", own) for key, own in self.shared_delta.storage_tensors().items())
        for number, head in enumerate(self.heads):
            if head:
                yield from ((f"heads/{number}/weight", head.weight), (f"heads/{number}/bias", head.bias))
        for number, outputs in self.outputs.items():
            yield from ((f"outputs/{number}/{name}", own) for name, own in outputs.items())
        if self.importance:
            yield from ((f"fisher/{key}", own) for key, own in self.importance.fisher.items())
            yield from ((f"anchor/{key}", own) for key, own in self.importance.anchor.items())


def load_state(data: bytes) -> StrategyState:
    """What `State.to_bytes` wrote. Raises BlobError for anything else."""
    tensors, about = deserialize(data, what="state of a strategy")

    def under(prefix: str, keys: list[str]) -> dict[str, Tensor]:
        return {key: tensors[f"{prefix}/{key}"] for key in keys}

    def head(number: int, said: Mapping[str, Any] | None) -> Head | None:
        own = said and under(f"heads/{number}", ["weight", "bias"])
        return Head(**own, labels=tuple(said["labels"]), pooling=said["pooling"]) if own and said else None

    try:
        body, matters = about["body"], about["importance"]
        heads = tuple(head(number, said) for number, said in enumerate(about["heads"]))
        outputs = {int(number): under(f"outputs/{number}", names) for number, names in about["outputs"].items()}
        importance = None
        if matters:
            fisher, anchor = (under(kept, matters["order"]) for kept in ("fisher", "anchor"))
            importance = FisherImportance(fisher, anchor, matters["rest"])
        shared = body and delta_from_tensors(under("body", body["order"]), body["about"])
        return StrategyState(shared, heads, outputs, importance, about["parameters"], about["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise BlobError(f"this is no state of a strategy ({type(error).__name__}: {error}); compare anew") from error


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
