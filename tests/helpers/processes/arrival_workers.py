"""Three forked arrival workers on one registry: `arrival_workers.py URL FOLDER BACKBONE`.

The first kills itself in the middle of its second task's training, as a power failure would; the others end when
nothing is left.
"""

import os
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import torch

import continual.learning.checkpoint
import continual.streams.arrivals
from continual import Learner
from continual.backbones.backbone import load_backbone
from continual.callbacks import RunCallbacks
from registry import Registry
from tests.helpers.controller_processes import fork, wait_exit_code


def main(url: str, place: str, backbone: str) -> int:
    torch.set_num_threads(1)
    folder = Path(place)
    datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
    continual.streams.arrivals.POLL_SECONDS = continual.learning.checkpoint.MIN_INTERVAL_SECONDS = 0.05
    loaded = load_backbone(backbone, device="cpu", dtype="float32")
    started: list[str] = []

    def die(_task: str, done: int, _total: int) -> None:
        if len(started) == 2 and done == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(watcher: RunCallbacks) -> int:
        with Registry.open(url, str(folder / "home/blobs")) as registry:
            return len(
                [error for error in Learner(loaded, registry).watch(idle=0, callbacks=watcher).values() if error]
            )

    watchers = [RunCallbacks(on_start=started.append, on_step=die), RunCallbacks(), RunCallbacks()]
    pids = [fork(lambda callbacks=callbacks: watch(callbacks), folder / "log") for callbacks in watchers]  # type: ignore[misc]
    codes = [wait_exit_code(pid, within=120) for pid in pids]
    print(codes, (folder / "log").read_text())
    return 0 if codes == [-signal.SIGKILL, 0, 0] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
