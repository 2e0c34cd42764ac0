"""Everything that needs a GPU, in one command of about ten minutes: types, packing, splitting, compiling, mixing.

    python -m tests.benchmarks.gpu [BACKBONE] [--device cuda] [--rows 32] [--tokens 64] [--parts ...]

BACKBONE is the name, hub id or folder of a causal language model; `smollm2` by default. One JSON document is printed,
with the parts:

- `types`: the backbone in float32, bfloat16, 8 and 4 bits, and in float32 split over all devices: MB of weights, ms of
  a batch's forward pass and of a step of training LoRA (none on a split backbone), MB of memory at the step's peak,
  tokens per second that the engine writes with a delta for each row, and the relative difference of the pooled vectors
  from those in float32
- `compiled`: hidden states through an attached LoRA, in bfloat16: ms as it is, by `torch.compile`, and by
  `torch.compile` with CUDA graphs, the breaks in its graph, and the relative difference of the results
- `mixed`: the speed of mixed batches relative to the frozen base, as `tests.benchmarks.mixed` measures it
- `writing`: the engine beside the plain model and PEFT, as `tests.benchmarks.writing` measures it

Training beside PEFT with transformers' Trainer is `tests.benchmarks.speed`, which runs on a GPU as it is.
A part or a type that this machine cannot run has its reason under `error`. With `--device cpu` the command runs
anywhere, to try the command itself.
"""

import argparse
import json
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import Delta, attached
from continual.deltas.delta import Head
from continual.features.pooling import pooled_features
from continual.features.tokens import pad, tokenize
from tests.benchmarks.mixed import BatchVariants, random_bert, timed
from tests.benchmarks.run_log import quieten, say
from tests.benchmarks.writing import TEXTS, WritingVariants, lora, speeds

TYPES: Mapping[str, Mapping[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "split": {"dtype": "float32", "device": "split"},
}
REPEATS = 10
MIXED_TASKS = (1, 8, 32)


class Measurement:
    """Times and memory of one device.

    Attributes:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synchronize(self) -> None:
        """Wait until the device has computed what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def milliseconds(self, run: Callable[[], Any], *, repeats: int = REPEATS) -> float:
        """Return the median time of a call, after one that warms up."""
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            run()
            self.synchronize()
            times.append(1000 * (time.perf_counter() - start))
        return median(times[1:])

    def peak_mb(self, run: Callable[[], Any]) -> float | None:
        """Return the most memory that a call takes beyond what was allocated before; None without a GPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        self.synchronize()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 1e6


def rows_of(backbone: Backbone, count: int) -> dict[str, Tensor]:
    """Return a padded batch [B, T] of so many texts."""
    tokens = tokenize(backbone, [TEXTS[row % len(TEXTS)] for row in range(count)], max_length=128)
    return pad(backbone, tokens, range(count))


def delta_with_head(backbone: Backbone) -> Delta:
    """Return a LoRA with a head of two labels."""
    delta = lora(backbone, 0, ())
    head = Head(torch.zeros(2, backbone.hidden_size), torch.zeros(2), ("no", "yes"), backbone.pooling)
    return Delta(delta.method, delta.settings, delta.backbone, delta.values, head)


def training_step(backbone: Backbone, batch: dict[str, Tensor], delta: Delta) -> None:
    """Compute the loss of a batch and the gradients of the delta."""
    with attached(backbone, delta):
        loss = pooled_features(backbone, batch, backbone.readout).square().mean()
    torch.autograd.backward(loss)


def types(arguments: Namespace, measurement: Measurement) -> dict[str, Any]:
    """Measure the backbone in each type."""
    results: dict[str, Any] = {}
    reference: list[Tensor] = []
    for name, options in TYPES.items():
        results[name] = or_error(partial(one_type, arguments, measurement, options, reference))
        say(f"{name}: {results[name]}")
    return results


def one_type(
    arguments: Namespace, measurement: Measurement, options: Mapping[str, Any], reference: list[Tensor]
) -> dict[str, Any]:
    """Measure the backbone in one type; the vectors [B, D] of the first become the reference of all others."""
    backbone = load_backbone(arguments.backbone, **{"device": arguments.device, **options})
    batch, delta = rows_of(backbone, arguments.rows), delta_with_head(backbone)

    @torch.inference_mode()
    def vectors() -> Tensor:
        with attached(backbone, delta.to(backbone.device)):
            return pooled_features(backbone, batch, backbone.readout).float().cpu()

    pooled = vectors()
    if not reference:
        reference.append(pooled)
    result: dict[str, Any] = {
        "weights_mb": sum(tensor.nbytes for tensor in backbone.base_module.state_dict().values()) / 1e6,
        "forward_ms": measurement.milliseconds(vectors),
        "difference": float((pooled - reference[0]).norm() / reference[0].norm()),
    }
    if not backbone.split:
        trainable = delta.trainable(backbone.device)
        result["step_ms"] = measurement.milliseconds(lambda: training_step(backbone, batch, trainable))
        result["step_peak_mb"] = measurement.peak_mb(lambda: training_step(backbone, batch, trainable))
        write = WritingVariants(backbone, rows=arguments.rows, tokens=arguments.tokens).tasks()
        seconds = measurement.milliseconds(write, repeats=2) / 1000
        result["tokens_per_second"] = arguments.rows * arguments.tokens / seconds
    return result


@torch.inference_mode()
def compiled(arguments: Namespace, measurement: Measurement) -> dict[str, Any]:
    """Compare hidden states as they are with those of a compiled model."""
    backbone = load_backbone(arguments.backbone, device=arguments.device, dtype="bfloat16")
    batch, delta = rows_of(backbone, arguments.rows), delta_with_head(backbone).to(backbone.device)
    results: dict[str, Any] = {}
    with attached(backbone, delta), backbone.autocast():
        model: Any = backbone.model
        eager = model(**batch, use_cache=False).last_hidden_state
        results["eager"] = {"ms": measurement.milliseconds(lambda: model(**batch, use_cache=False))}
        results["graph_breaks"] = torch._dynamo.explain(model)(**batch, use_cache=False).graph_break_count
        for name, mode in {"compile": "default", "cuda_graphs": "reduce-overhead"}.items():
            torch._dynamo.reset()
            run = torch.compile(model, mode=mode)

            def measured(run: Any = run) -> dict[str, float]:
                states = run(**batch, use_cache=False).last_hidden_state.clone()
                difference = float((states - eager).float().norm() / eager.float().norm())
                return {
                    "ms": measurement.milliseconds(lambda: run(**batch, use_cache=False)),
                    "difference": difference,
                }

            results[name] = or_error(measured)
            say(f"{name}: {results[name]}")
    return results


@torch.inference_mode()
def mixed(arguments: Namespace, measurement: Measurement) -> dict[str, Any]:
    """Measure mixed batches on a random BERT of the size of MiniLM."""
    torch.set_default_device(measurement.device)
    try:
        backbone = random_bert(384, 6)
        variants = BatchVariants(backbone, tokens=32, batch=arguments.rows, registered=max(MIXED_TASKS))
    finally:
        torch.set_default_device("cpu")
    variants.with_peft(max(MIXED_TASKS))
    results = {}
    for tasks in MIXED_TASKS:
        row_tasks = [task % tasks for task in range(arguments.rows)]
        results[f"{tasks} tasks"] = timed(variants.all(row_tasks), measurement.device, REPEATS)
        say(f"mixed, {tasks} tasks: {results[f'{tasks} tasks']}")
    return results


def writing(arguments: Namespace, measurement: Measurement) -> dict[str, Any]:
    """Measure the engine beside the plain model and PEFT, in bfloat16."""
    backbone = load_backbone(arguments.backbone, device=arguments.device, dtype="bfloat16")
    return speeds(backbone, {"rows": arguments.rows, "tokens": arguments.tokens, "rounds": 2, "sites": ()})


PARTS = {part.__name__: part for part in (types, compiled, mixed, writing)}


def or_error(measure: Callable[[], Any]) -> Any:
    """Return what is measured, or why it could not be."""
    try:
        return measure()
    except Exception as error:  # a part that fails must not take the others with it
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", nargs="?", default="smollm2")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    quieten()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU here; try the command itself with --device cpu --rows 2 --tokens 4")
    measurement = Measurement(device)
    results: dict[str, Any] = {
        "backbone": arguments.backbone,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "rows": arguments.rows,
        "tokens": arguments.tokens,
    }
    for name in arguments.parts:
        start = time.perf_counter()
        results[name] = or_error(partial(PARTS[name], arguments, measurement))
        results[f"{name}_seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
