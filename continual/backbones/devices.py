"""Where a backbone computes, and in which type: what is asked for, or what is best here."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from continual.errors import BackboneError

# Matrix products of bfloat16 on a CPU are prepared anew for every shape of a batch, and two caches keep 1,024 of these
# preparations each, with a copy of the weights: over a gigabyte for texts of all lengths. Few are as quick.
for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "32")

DeviceSpec = (
    str | Mapping[str, str | int]
)  # a device, `split`, or the devices of a model's parts as accelerate takes them


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one; raises BackboneError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for a GPU
        reason = str(error).splitlines()[0]
        raise BackboneError(
            f"device {device!r} is not available here ({reason}); allowed: auto, cpu, cuda where PyTorch finds a GPU, "
            "or split over all that there are"
        ) from error


def device_map(device: DeviceSpec) -> str | dict[str, str | int] | None:
    """What accelerate is told of a model that is to be split over devices; None of one that is not.

    `split` fills the GPUs one after the other, then memory, then the disk.
    Raises BackboneError where accelerate is missing.
    """
    if device != "split" and isinstance(device, str):
        return None
    if importlib.util.find_spec("accelerate") is None:
        raise BackboneError(
            f"device {device!r} needs accelerate, of the extra `quantized`; install it: "
            "pip install 'continual[quantized]'"
        )
    return "auto" if isinstance(device, str) else dict(device)


def is_split(model: Any) -> bool:
    """Whether accelerate brings what the parts of a model compute from device to device."""
    return hasattr(model, "_hf_hook")


def device_of(module: nn.Module) -> torch.device:
    """Where a module of a split model computes: not where its weights lie, where they are on the disk."""
    hook: Any = getattr(module, "_hf_hook", None)
    device = next((own.execution_device for own in getattr(hook, "hooks", (hook,)) if own), None)
    return next(module.parameters()).device if device is None else torch.empty(0, device=device).device


def resolve_dtype(dtype: str, device: torch.device, *, quantised: bool = False) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it in hardware or the backbone is quantised, else float32."""
    if dtype == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bfloat16()
        return torch.bfloat16 if fast or quantised else torch.float32
    if dtype not in ("float32", "bfloat16"):
        raise BackboneError(f"dtype {dtype!r} is not known; allowed: auto, float32, bfloat16")
    return torch.float32 if dtype == "float32" else torch.bfloat16


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
