"""What an export for serving engines costs in score: each method's change of weights as LoRA of several ranks.

    python -m tests.benchmarks.low_rank STREAM.yaml --task trec6 [--backbone smollm2] [--methods lora,dora,loha,oft]

The task is learned once by each method, from scratch, and exported for vLLM at every rank. One JSON document: per
method and rank the relative error of the weights, the score on test rows with the delta and with the approximation in
the weights, and the seconds of the conversion without scoring.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import load_delta
from continual.exchange.engine_adapter import to_engine_adapter
from continual.exchange.serving_engines import SERVING_ENGINES
from continual.kinds import backbone_for, kind_of_delta
from continual.learner import Learner
from registry import Registry
from tasks import Method, Stream, read_stream

SETTINGS: dict[str, dict[str, Any]] = {"oft": {"block_size": 32}, "fourier_ft": {"scale": 150.0}}


def measure(learner: Learner, name: str, ranks: list[int]) -> list[dict[str, Any]]:
    """Return one row per rank of a registered delta."""
    stored = learner.registry.delta(name)
    delta = load_delta(learner.registry.blobs.get(stored.values))
    kind = kind_of_delta(delta)
    backbone, engine, rows = backbone_for(learner.backbone, kind), SERVING_ENGINES["vllm"], []
    for rank in ranks:
        begun = time.perf_counter()
        to_engine_adapter(backbone, stored, delta, kind=kind, engine=engine, rank=rank, measured=False)
        seconds = time.perf_counter() - begun
        adapter = to_engine_adapter(backbone, stored, delta, kind=kind, engine=engine, rank=rank)
        change = adapter.score_change
        rows.append(
            {
                "method": stored.method,
                "rank": adapter.rank,
                "weight_error": adapter.weight_error,
                "before": change and change.before,
                "after": change and change.after,
                "rows": change and change.rows,
                "seconds": seconds,
            }
        )
    return rows


def learn(backbone: Backbone, stream: Stream, task: str, method: str, folder: Path) -> tuple[Learner, str]:
    """Learn a task of a stream by a method, in a registry of its own."""
    (spec,) = (spec for spec in stream.tasks if spec.name == task)
    chosen = Method.model_validate({"name": method, **SETTINGS.get(method, {})})
    single = stream.model_copy(update={"tasks": (spec,), "method": chosen, "warm_start": "scratch"})
    learner = Learner(backbone, Registry.open(f"sqlite:///{folder / 'registry.db'}", str(folder / "blobs")))
    return learner, learner.learn(single)


def main() -> None:
    """Measure every method at every rank, and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--methods", default="lora,dora,loha,oft")
    parser.add_argument("--ranks", default="4,16,64")
    options = parser.parse_args()
    backbone, stream = load_backbone(options.backbone, device="cpu", dtype="float32"), read_stream(options.stream)
    ranks, rows = [int(rank) for rank in options.ranks.split(",")], []
    for method in options.methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            learner, name = learn(backbone, stream, options.task, method, Path(folder))
            with learner:
                rows += measure(learner, name, ranks)
    print(json.dumps({"task": options.task, "backbone": options.backbone, "exports": rows}, indent=2))


if __name__ == "__main__":
    main()
