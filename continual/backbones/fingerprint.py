"""Fingerprint of a backbone: a digest of its configuration and weights."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from continual.backbones.quantization import quantization_digest

# Keys of a config that do not change what the model computes; the packing of weights is digested by itself.
_EXCLUDED_KEYS = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config"}
)


def fingerprint(model: Any) -> str:
    """Return the SHA-256 digest of a model's configuration and weights, 64 hexadecimal digits.

    Quantised weights are digested as they are packed. Paths, library versions and the compute type do not count.
    """
    settings = {key: value for key, value in model.config.to_diff_dict().items() if key not in _EXCLUDED_KEYS}
    if packed := quantization_digest(model):
        settings["quantised"] = packed
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        tensor = load_offloaded(model, key) if value.is_meta else value
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def load_offloaded(model: Any, key: str) -> Tensor:
    """Load a weight that accelerate keeps on the disk while its module is not used."""
    from accelerate.utils import align_module_device

    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, "cpu"):
        value: Tensor = getattr(module, name).detach().clone()
    return value
