"""Cost of a backbone in float32, in 8 and 4 bits, and with activation checkpointing.

    python -m tests.benchmarks.large_backbones STREAM.yaml [--tasks trec6] [--epochs 1] > large.json

Each variant learns the tasks in a separate registry, on one device, and answers the rows of a batch: scores on test
rows, CPU seconds, and MB of weights, of a step's saved activations, and of the layers' inputs, which checkpointing
saves instead. Matrix products are in bfloat16 except in `float32`.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from continual import Learner
from continual.backbones.backbone import Backbone
from continual.deltas import attached, init_values
from continual.deltas.delta import Delta, Head
from continual.deltas.methods.lora import LoRA
from continual.features.pooling import pooled_features
from continual.features.tokens import pad
from continual.features.tokens import tokenize as tokens_of
from continual.training.steps import training_mode
from registry import Registry
from tasks import Stream, load_stream, read_stream
from tests.benchmarks.run_log import quieten, say

WAYS: Mapping[str, Mapping[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
}


def learned(stream: Stream, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of one way to load the stream's backbone."""
    with TemporaryDirectory() as home:
        registry = Registry.open(f"sqlite:///{home}/registry.db", f"{home}/blobs")
        start = time.process_time()
        with Learner.open(stream.backbone or "minilm", registry, **options) as learner:
            loaded = time.process_time() - start
            failed = learner.run(stream)
            if failed:
                raise SystemExit(str(failed))
            per_task = learner.report(stream.name)["per_task"]
            texts = load_stream(stream)[0].train.texts[:32]
            return {
                "scores": {row["task"]: row["score"] for row in per_task},
                "seconds": time.process_time() - start,
                "load_seconds": loaded,
                "weights_mb": weights(learner.backbone) / 1e6,
                **{f"step_{name}": step(learner.backbone, texts, again) for name, again in STEPS.items()},
            }


STEPS = {"plain": False, "checkpointing": True}


def weights(backbone: Backbone) -> int:
    """Return the bytes of all weights and of the state needed to dequantise them."""
    return sum(tensor.nbytes for tensor in backbone.base_module.state_dict().values())


def step(backbone: Backbone, texts: Any, again: bool) -> dict[str, float]:
    """Return the MB that a step saves for the backward pass, and its seconds, the best of three."""
    settings = LoRA()
    head = Head(torch.zeros(2, backbone.hidden_size), torch.zeros(2), ("a", "b"), backbone.pooling)
    delta = Delta("lora", settings, backbone.fingerprint, init_values(backbone, settings, seed=0), head)
    learning = delta.trainable(backbone.device)
    batch = pad(backbone, tokens_of(backbone, texts, max_length=128), range(len(texts)))
    weights = {weight.untyped_storage().data_ptr() for weight in backbone.base_module.parameters()}
    took, saved = [], dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    for _ in range(3):
        saved.clear()
        start = time.process_time()
        with attached(backbone, learning), training_mode(backbone, recompute=again):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = pooled_features(backbone, batch, backbone.readout).square().sum()
            torch.autograd.backward(loss)
        took.append(time.process_time() - start)
    entering = 4 * batch["input_ids"].numel() * backbone.hidden_size * backbone.num_layers if again else 0
    return {"mb": (sum(saved.values()) + entering) / 1e6, "seconds": min(took)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--epochs", type=int)
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    stream = read_stream(arguments.stream)
    chosen = tuple(task for task in stream.tasks if arguments.tasks is None or task.name in arguments.tasks)
    budget = stream.budget.model_copy(update={} if arguments.epochs is None else {"epochs": arguments.epochs})
    stream, results = stream.model_copy(update={"tasks": chosen, "budget": budget}), {}
    for name, options in WAYS.items():
        results[name] = learned(stream, options)
        say(f"{name}: {results[name]}")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
