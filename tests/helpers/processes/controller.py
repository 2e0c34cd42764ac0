"""A controller of its own process: `controller_process.py BACKBONE HOME STREAM [step|learned]` runs a stream.

With a last argument it kills itself, as a machine that loses power would, at a step of the second task's training, or
between its registration and what follows.
"""

import os
import signal
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import torch

from continual import Learner, read_stream
from continual.callbacks import RunCallbacks
from continual.settings import resolve_locations
from registry import Registry

torch.set_num_threads(1)
VICTIM = "mood"


def die(task: str, *_: object) -> None:
    if task == VICTIM:
        os.kill(os.getpid(), signal.SIGKILL)


def main(backbone: str, home: str, stream: str, at: str = "") -> None:
    datasets.config.HF_DATASETS_CACHE = f"{home}-cache"
    deadly = {"step": RunCallbacks(on_step=die), "learned": RunCallbacks(on_learned=die), "": RunCallbacks()}
    places = resolve_locations(home, {})
    with Learner.open(backbone, Registry.open(places.registry, places.blobs), device="cpu", dtype="float32") as learner:
        print("ready", flush=True)
        sys.stdin.readline()  # so that several can begin at the same moment
        failed = learner.run(read_stream(stream), callbacks=deadly[at])
    print(failed or "done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
