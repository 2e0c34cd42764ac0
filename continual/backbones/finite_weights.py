"""Refuse weights that are not finite: every answer of such a backbone would be no number."""

from collections.abc import Iterator
from typing import Any

import torch

from continual.backbones.fingerprint import load_offloaded
from continual.backbones.quantization import is_quantized
from continual.errors import BackboneError

NAMED_PARAMETERS = 3  # that a message names


def require_finite_weights(model: Any, name: str) -> None:
    """Check every parameter that is not packed.

    Args:
        model: The transformers model.
        name: Name of the backbone, for the message.

    Raises:
        BackboneError: A parameter holds NaN or infinite values.
    """
    counts = dict(_nonfinite_counts(model))
    if counts:
        named = ", ".join(f"{count:,} in {key}" for key, count in list(counts.items())[:NAMED_PARAMETERS])
        more = f" and {len(counts) - NAMED_PARAMETERS} more parameters" if len(counts) > NAMED_PARAMETERS else ""
        raise BackboneError(
            f"backbone {name!r} has weights that are NaN or infinite: {named}{more}. Nothing was learned. Get its "
            "files again, or save it from a training that did not diverge."
        )


def _nonfinite_counts(model: Any) -> Iterator[tuple[str, int]]:
    """Yield name and number of values of each parameter that holds values that are not finite."""
    for key, parameter in model.named_parameters():
        if is_quantized(parameter):
            continue
        weight = load_offloaded(model, key) if parameter.is_meta else parameter
        # A sum with such a value is not finite either, and takes a fraction of the time of a look at each.
        if not weight.sum().isfinite() and (count := int((~torch.isfinite(weight)).sum())):
            yield key, count
