"""The most memory that a part of a process takes at once, on Linux."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def with_peak(work: Callable[[], T]) -> tuple[T, float]:
    """Call a function; return its result, and the peak of memory in MiB over what the process held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _kib("VmRSS")
    result = work()
    return result, (_kib("VmHWM") - before) / 1024


def _kib(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
