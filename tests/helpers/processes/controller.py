"""A controller process: `controller.py BACKBONE HOME STREAM [step|learned]` runs a stream.

With the last argument it kills itself, as a power failure would, at a step of the second task's training or right
after its registration.
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


def main(backbone: str, home: str, stream: str, moment: str = "") -> None:
    datasets.config.HF_DATASETS_CACHE = f"{home}-cache"
    deadly = {"step": RunCallbacks(on_step=die), "learned": RunCallbacks(on_learned=die), "": RunCallbacks()}
    places = resolve_locations(home, {})
    with Learner.open(backbone, Registry.open(places.registry, places.blobs), device="cpu", dtype="float32") as learner:
        print("ready", flush=True)
        sys.stdin.readline()  # so that several can begin at the same moment
        failed = learner.run(read_stream(stream), callbacks=deadly[moment])
    print(failed or "done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
