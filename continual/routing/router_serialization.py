"""A calibrated router as bytes, so that another process need not build it again."""

from dataclasses import fields

from continual.routing.mahalanobis import Mahalanobis
from continual.routing.ridge import Ridge
from continual.routing.router import Router
from continual.routing.rules import RoutingRule
from continual.serialization import deserialize, serialize
from registry.errors import BlobError

_RULES = {"ridge": Ridge, "mahalanobis": Mahalanobis}  # dataclasses of tensors
_TENSORS = ("offsets", "scale", "familiarity_levels", "level_weights")
_VALUES = ("tasks", "features", "weights", "candidates", "margin")  # JSON keeps every float


def router_to_bytes(router: Router) -> bytes | None:
    """Serialize a router; None where one of its rules is of another package, or an index."""
    names = {kind: name for name, kind in _RULES.items()}
    if any(type(rule) not in names for rule in router.rules):
        return None
    tensors = {name: getattr(router, name) for name in _TENSORS}
    for number, rule in enumerate(router.rules):
        for field in fields(_RULES[names[type(rule)]]):
            tensors[f"rules/{number}/{field.name}"] = getattr(rule, field.name)
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
        rules: list[RoutingRule] = []
        for number, name in enumerate(values["rules"]):
            kind = _RULES[name]
            rules.append(kind(**{field.name: tensors[f"rules/{number}/{field.name}"] for field in fields(kind)}))
        return Router(
            tasks=tuple(values["tasks"]),
            features=values["features"],
            rules=tuple(rules),
            weights=tuple(values["weights"]),
            candidates=values["candidates"],
            margin=values["margin"],
            **{name: tensors[name] for name in _TENSORS},
        )
    except (KeyError, TypeError) as error:
        raise BlobError(f"these {len(data)} bytes are no router: {error!r}") from error
