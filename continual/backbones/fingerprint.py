"""How a backbone is known again: a digest of its configuration and weights."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from continual.backbones.quantization import quantization_digest

# Keys of a config that say where and how it was saved, not what it computes; packed weights say how by themselves.
_NOT_COMPUTED = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config"}
)


def fingerprint(model: Any) -> str:
    """SHA-256 over configuration and weights, as they are packed, as 64 hexadecimal digits."""
    settings = {key: value for key, value in model.config.to_diff_dict().items() if key not in _NOT_COMPUTED}
    if packed := quantization_digest(model):
        settings["quantised"] = packed
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        whole = _from_disk(model, key) if value.is_meta else value
        digest.update(whole.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def _from_disk(model: Any, key: str) -> Tensor:
    """A weight that accelerate brings to the device only while its module is used."""
    from accelerate.utils import align_module_device

    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, "cpu"):
        value: Tensor = getattr(module, name).detach().clone()
    return value
