"""Store tensors as blobs: safetensors files with a format version and JSON metadata.

A release reads the formats of all releases before it, and refuses those that came after.
"""

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from continual.file_metadata import METADATA_KEY, read_metadata
from registry.errors import BlobError

# Since format 2 a delta's values may be float16; since format 3 some methods are defined otherwise
# (`MethodSettings.upgrade`). A file without a format is of format 1.
FORMAT_VERSION = 3


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """Serialize named tensors of any shape and JSON metadata; equal input gives equal bytes."""
    document = {**(metadata or {}), "format": FORMAT_VERSION}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save_safetensors(contiguous, metadata={METADATA_KEY: json.dumps(document, sort_keys=True)})


def deserialize(data: bytes, *, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Deserialize the bytes that `serialize` returned.

    Args:
        data: The bytes.
        what: A noun for their content, for messages, such as "delta".

    Returns:
        The tensors of any shape, ordered by name, and the metadata, with `format`.

    Raises:
        BlobError: The bytes are no such file, or of a newer format than this release reads.
    """
    try:
        tensors = dict(sorted(load_safetensors(data).items()))  # safetensors returns them in a random order
        metadata = read_metadata(data)
        version = int(metadata.setdefault("format", 1))
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BlobError(f"these {len(data)} bytes are not a stored {what} ({reason}); restore the blob") from error
    if version > FORMAT_VERSION:
        raise BlobError(
            f"this {what} is of format {version}, and this release of continual reads formats up to {FORMAT_VERSION}: "
            "a newer release wrote it. Install that release or a later one."
        )
    return tensors, metadata
