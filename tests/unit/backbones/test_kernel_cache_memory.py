"""Memory of the process: batches of ever new shapes must not grow kernel caches."""

import subprocess
import sys

import pytest

SHAPES = """
import continual.backbones.devices, os, psutil, torch
linear, process = torch.nn.Linear(384, 384), psutil.Process()
def mib(): return process.memory_info().rss / (1 << 20)
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    for rows in range(1, 65): linear(torch.randn(rows, 384))
    before = mib()
    for rows in range(65, 513): linear(torch.randn(rows, 384))
print(mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read as Linux tells it")
def test_bfloat16_kernels_are_not_cached_for_every_shape() -> None:
    completed = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True)
    assert float(completed.stdout) < 100  # it was over 300 MiB
