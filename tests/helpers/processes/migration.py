"""Migration processes: `migration.py BACKBONE HOME TASK STEP`.

The first kills itself at that step of that task's training, as a power failure would. After a line on standard input
two others continue concurrently, writing a checkpoint after every epoch and printing what they resume from. All are
forked from a process that trains nothing itself.
"""

import os
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import torch

import continual.learning.checkpoint
import continual.streams.worker_loop
from continual import Learner
from continual.backbones.backbone import load_backbone
from continual.callbacks import RunCallbacks
from continual.settings import resolve_locations
from registry import Registry
from tests.helpers.controller_processes import fork, wait_exit_code

LIMIT = 240.0  # seconds


def main(folder: str, home: str, victim: str, step: str) -> None:
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = f"{home}-cache"
    datasets.disable_progress_bars()
    continual.learning.checkpoint.MIN_INTERVAL_SECONDS, continual.learning.checkpoint.MAX_OVERHEAD = 0.0, 1e9
    continual.streams.worker_loop.POLL_SECONDS = 0.05
    backbone, places, log = (
        load_backbone(folder, device="cpu", dtype="float32"),
        resolve_locations(home, {}),
        Path(f"{home}.log"),
    )

    def die(task: str, done: int, total: int) -> None:
        if (task, str(done)) == (victim, step):
            os.kill(os.getpid(), signal.SIGKILL)

    def start(watcher: RunCallbacks) -> int:
        def work() -> int:
            with Learner(backbone, Registry.open(places.registry, places.blobs)) as learner:
                return int(any(row.state != "learned" for row in learner.migrate(callbacks=watcher)))

        return fork(work, log)

    print(wait_exit_code(start(RunCallbacks(on_step=die)), within=LIMIT), flush=True)
    sys.stdin.readline()
    telling = RunCallbacks(on_note=lambda task, note: print(task, note, flush=True))
    for code in [wait_exit_code(number, within=LIMIT) for number in (start(telling), start(telling))]:
        print(code, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
