"""Resolve the device and the compute type of a backbone; `auto` chooses the best that the machine has."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from continual.errors import BackboneError

# oneDNN prepares bfloat16 matrix products on a CPU for every shape of a batch, and two caches hold 1,024 preparations
# each with a copy of the weights: over a gigabyte for texts of all lengths. A capacity of 32 is as quick.
for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "32")

# A device, `split`, or a device map from parts of the model to devices, as accelerate takes it.
DeviceSpec = str | Mapping[str, str | int]


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; `auto` is the GPU if there is one, else the CPU.

    Raises:
        BackboneError: The machine has no such device.
    """
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
    """Return accelerate's device map for a model that is split over devices, or None for one device.

    `split` fills the GPUs one after the other, then memory, then the disk.

    Raises:
        BackboneError: accelerate is not installed.
    """
    if device != "split" and isinstance(device, str):
        return None
    if importlib.util.find_spec("accelerate") is None:
        raise BackboneError(
            f"device {device!r} needs accelerate, of the extra `quantized`; install it: "
            "pip install 'continual-deltas[quantized]'"
        )
    return "auto" if isinstance(device, str) else dict(device)


def is_split(model: Any) -> bool:
    """Return whether a model is split over devices by accelerate."""
    return hasattr(model, "_hf_hook")


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module of a split model computes on, even with weights on the disk."""
    hook: Any = getattr(module, "_hf_hook", None)
    device = next((each.execution_device for each in getattr(hook, "hooks", (hook,)) if each), None)
    return next(module.parameters()).device if device is None else torch.empty(0, device=device).device


def resolve_dtype(dtype: str, device: torch.device, *, quantized: bool = False) -> torch.dtype:
    """Return the type of the matrix products.

    `auto` is bfloat16 where the device multiplies it in hardware or the backbone is quantised, else float32.

    Raises:
        BackboneError: `dtype` is none of auto, float32 and bfloat16.
    """
    if dtype == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bfloat16()
        return torch.bfloat16 if fast or quantized else torch.float32
    if dtype not in ("float32", "bfloat16"):
        raise BackboneError(f"dtype {dtype!r} is not known; allowed: auto, float32, bfloat16")
    return torch.float32 if dtype == "float32" else torch.bfloat16


def _cpu_has_bfloat16() -> bool:
    """Return whether PyTorch multiplies bfloat16 in hardware; ATEN_CPU_CAPABILITY may keep it to older instructions."""
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(has_instructions) and torch.backends.cpu.get_cpu_capability() == "AVX512"
