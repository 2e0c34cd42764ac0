"""The state of a strategy after a task, stored as one blob, from which the next task continues."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from continual.deltas import Delta, Head, delta_from_tensors, head_from_metadata
from continual.experiments.strategies.fisher import FisherImportance
from continual.kinds import Outputs
from continual.serialization import deserialize, serialize
from registry.errors import BlobError


@dataclass(frozen=True)
class StrategyState:
    """The state of a strategy after some tasks.

    Attributes:
        shared_delta: The delta that all tasks share, with the last task's head; None where each task has its own model.
        heads: The heads of the learned tasks, in order; None for a task without a head.
        outputs: The outputs for the test rows of each learned task, by the task's number.
        importance: The importance of the weights to earlier tasks; None for strategies that do not measure it.
        parameters: The number of parameters that answer all tasks.
        size: The bytes that the strategy stores for all tasks.
    """

    shared_delta: Delta | None = None
    heads: tuple[Head | None, ...] = ()
    outputs: Mapping[int, Outputs] = field(default_factory=dict)
    importance: FisherImportance | None = None
    parameters: int = 0
    size: int = 0

    def to_bytes(self) -> bytes:
        """Return the state as a safetensors file."""
        body, importance = self.shared_delta, self.importance
        about: dict[str, Any] = {
            "body": body and {"about": body.metadata(), "order": [*body.tensors()]},
            "heads": [head and head.metadata() for head in self.heads],
            "outputs": {number: [*outputs] for number, outputs in self.outputs.items()},
            # A file does not preserve the order of its tensors, and sums over them depend on it.
            "importance": importance and {"order": [*importance.fisher], "rest": importance.constant},
            "parameters": self.parameters,
            "size": self.size,
        }
        return serialize({name: tensor.clone() for name, tensor in self._tensors()}, about)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        if self.shared_delta:
            yield from ((f"body/{key}", tensor) for key, tensor in self.shared_delta.storage_tensors().items())
        for number, head in enumerate(self.heads):
            if head:
                yield from ((f"heads/{number}/weight", head.weight), (f"heads/{number}/bias", head.bias))
        for number, outputs in self.outputs.items():
            yield from ((f"outputs/{number}/{name}", tensor) for name, tensor in outputs.items())
        if self.importance:
            yield from ((f"fisher/{key}", tensor) for key, tensor in self.importance.fisher.items())
            yield from ((f"anchor/{key}", tensor) for key, tensor in self.importance.anchor.items())


def load_state(data: bytes) -> StrategyState:
    """Read a state that `StrategyState.to_bytes` wrote.

    Raises:
        BlobError: The bytes are something else.
    """
    tensors, about = deserialize(data, what="state of a strategy")

    def tensors_under(prefix: str, keys: list[str]) -> dict[str, Tensor]:
        return {key: tensors[f"{prefix}/{key}"] for key in keys}

    def head(number: int, description: Mapping[str, Any] | None) -> Head | None:
        if not description:
            return None
        parts = tensors_under(f"heads/{number}", ["weight", "bias"])
        return head_from_metadata(parts["weight"], parts["bias"], description)

    try:
        body, stored_importance = about["body"], about["importance"]
        heads = tuple(head(number, description) for number, description in enumerate(about["heads"]))
        outputs = {int(number): tensors_under(f"outputs/{number}", names) for number, names in about["outputs"].items()}
        importance = None
        if stored_importance:
            fisher, anchor = (tensors_under(part, stored_importance["order"]) for part in ("fisher", "anchor"))
            importance = FisherImportance(fisher, anchor, stored_importance["rest"])
        shared = body and delta_from_tensors(tensors_under("body", body["order"]), body["about"])
        return StrategyState(shared, heads, outputs, importance, about["parameters"], about["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise BlobError(f"this is no state of a strategy ({type(error).__name__}: {error}); compare anew") from error


def stack_heads(heads: Sequence[Head | None]) -> Head | None:
    """Concatenate the heads: weights [L_k, D] to [ΣL_k, D], biases [L_k] to [ΣL_k]; None for no heads."""
    present = [head for head in heads if head]
    if not present:
        return None
    weight, bias = (torch.cat([getattr(head, name) for head in present]) for name in ("weight", "bias"))
    return replace(
        present[0], weight=weight, bias=bias, labels=tuple(label for head in present for label in head.labels)
    )


def split_head(whole: Head | None, like: Sequence[Head | None]) -> tuple[Head | None, ...]:
    """Undo `stack_heads`: return one head per entry of `like`.

    Args:
        whole: The stacked head, weight [ΣL_k, D] and bias [ΣL_k].
        like: Heads of the same sizes L_k, in order.

    Returns:
        Heads with weight [L_k, D] and bias [L_k], views of the rows of `whole`.
    """
    ends = accumulate((len(head.labels) if head else 0 for head in like), initial=0)
    return tuple(_rows(whole, begin, head) for begin, head in zip(ends, like, strict=False))


def _rows(whole: Head | None, begin: int, like: Head | None) -> Head | None:
    if whole is None or like is None:
        return None
    rows = slice(begin, begin + len(like.labels))
    return replace(whole, weight=whole.weight[rows], bias=whole.bias[rows], labels=like.labels)
