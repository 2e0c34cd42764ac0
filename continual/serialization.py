"""How tensors are kept as blobs: safetensors files that say which format they are of.

A release reads the formats of all releases before it, and refuses those that came after.
"""

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from registry.errors import BlobError

FORMAT_VERSION = (
    2  # of what is written here: since 2 a delta's values may be of float16; a file that says nothing is of 1
)
_METADATA = "continual"  # one key only: the order of several would not be the same in every process


def serialize(tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> bytes:
    """Tensors, and what is said about them as JSON; the same gives the same bytes."""
    said = {"format": FORMAT_VERSION, **(about or {})}
    own = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save_safetensors(own, metadata={_METADATA: json.dumps(said, sort_keys=True)})


def deserialize(data: bytes, *, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, in order, and what is said about them.

    Raises: BlobError, where the bytes are no such file, or of a format that this release does not know.
    """
    try:
        tensors = dict(sorted(load_safetensors(data).items()))  # safetensors gives them in an order of chance
        about = dict(json.loads(_metadata(data).get(_METADATA, "{}")))
        found = int(about.pop("format", 1))
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BlobError(f"these {len(data)} bytes are not a stored {what} ({reason}); restore the blob") from error
    if found > FORMAT_VERSION:
        raise BlobError(
            f"this {what} is of format {found}, and this release of continual reads formats up to {FORMAT_VERSION}: "
            "a newer release wrote it. Install that release or a later one."
        )
    return tensors, about


def _metadata(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))
