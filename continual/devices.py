"""Where a backbone computes, and in which type: what is asked for, or what is best here."""

import os

import torch

from continual.errors import BackboneError

# Matrix products of bfloat16 on a CPU are prepared anew for every shape of a batch, and two caches keep 1,024 of these
# preparations each, with a copy of the weights: over a gigabyte for texts of all lengths. Few are as quick.
for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "32")


def choose_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one; raises BackboneError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for a GPU
        reason = str(error).splitlines()[0]
        raise BackboneError(
            f"device {device!r} is not available here ({reason}); allowed: auto, cpu, cuda where PyTorch finds a GPU"
        ) from error


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it in hardware, else float32."""
    if dtype == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in ("float32", "bfloat16"):
        raise BackboneError(f"dtype {dtype!r} is not known; allowed: auto, float32, bfloat16")
    return torch.float32 if dtype == "float32" else torch.bfloat16


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
