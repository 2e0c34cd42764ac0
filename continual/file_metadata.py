"""The JSON metadata of a stored file of tensors, read without its tensors and without torch."""

import json
from typing import Any

METADATA_KEY = "continual"  # one key only: safetensors would write several in an order that differs by process


def read_metadata(data: bytes) -> dict[str, Any]:
    """Return the metadata that `continual.serialization.serialize` wrote; empty where a file has none.

    Args:
        data: A safetensors file: the length of its header in 8 bytes, the header as JSON, the tensors.

    Raises:
        ValueError: The bytes are no such file.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = dict(json.loads(data[8 : 8 + length]))
        return dict(json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}")))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"these {len(data)} bytes are no file of tensors: {type(error).__name__}: {error}") from error
