"""A calibrated router as bytes, so that another process need not build it again."""

from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor

from continual.routing.candidates import CandidateIndex, ClassWeights
from continual.routing.mahalanobis import Mahalanobis
from continual.routing.ridge import Ridge
from continual.routing.router import Router
from continual.routing.rules import RoutingRule
from continual.serialization import deserialize, serialize
from registry.errors import BlobError

_RULES: dict[str, type[Ridge] | type[Mahalanobis]] = {"ridge": Ridge, "mahalanobis": Mahalanobis}
_TENSORS = ("offsets", "scale", "familiarity_levels", "level_weights", "level_tasks", "task_of_class")
_VALUES = ("tasks", "features", "weights", "curve", "candidates", "margin")  # JSON keeps every float


def router_to_bytes(router: Router) -> bytes | None:
    """Serialize a router; None where one of its rules is of another package."""
    names: dict[type, str] = {kind: name for name, kind in _RULES.items()}
    if any(type(rule) not in names for rule in router.rules):
        return None
    tensors = {name: getattr(router, name) for name in _TENSORS}
    if router.index:
        tensors |= {f"index/{field.name}": getattr(router.index, field.name) for field in fields(CandidateIndex)}
    for number, rule in enumerate(router.rules):
        for field in fields(rule):  # type: ignore[arg-type]
            value = getattr(rule, field.name)
            prefix = f"rules/{number}/{field.name}"
            if isinstance(value, ClassWeights):
                tensors |= {f"{prefix}/values": value.values, f"{prefix}/unit": value.unit}
            elif field.name != "task_of_class":  # the router's
                tensors[prefix] = value
    values = {name: getattr(router, name) for name in _VALUES}
    return serialize(tensors, values | {"rules": [names[type(rule)] for rule in router.rules]})


def router_from_bytes(data: bytes) -> Router:
    """Restore a router, to the bit, that `router_to_bytes` serialized.

    Raises:
        BlobError: The bytes are something else.
    """
    read, values = deserialize(data, what="router")
    # Copied, since the order of a product's sums may depend on how its operands lie in memory.
    tensors = {name: tensor.clone() for name, tensor in read.items()}
    try:
        rules = [_rule(_RULES[name], tensors, f"rules/{number}/") for number, name in enumerate(values["rules"])]
        has_index = "index/projection" in tensors
        index = {field.name: tensors[f"index/{field.name}"] for field in fields(CandidateIndex)} if has_index else None
        return Router(
            tasks=tuple(values["tasks"]),
            features=values["features"],
            rules=tuple(rules),
            weights=tuple(values["weights"]),
            curve=tuple(values["curve"]),
            candidates=values["candidates"],
            margin=values["margin"],
            index=CandidateIndex(**index) if index else None,
            **{name: tensors[name] for name in _TENSORS},
        )
    except (KeyError, TypeError) as error:
        raise BlobError(f"these {len(data)} bytes are no router: {error!r}") from error


def _rule(kind: type[Ridge] | type[Mahalanobis], tensors: Mapping[str, Tensor], prefix: str) -> RoutingRule:
    weights = ClassWeights(tensors[f"{prefix}weights/values"], tensors[f"{prefix}weights/unit"])
    others = [field.name for field in fields(kind) if field.name not in ("weights", "task_of_class")]
    parts = {name: tensors[f"{prefix}{name}"] for name in others}
    return kind(weights=weights, task_of_class=tensors["task_of_class"], **parts)
