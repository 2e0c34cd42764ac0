"""Comparison of methods: test scores, parameters, memory and speed on tasks of a stream.

    python -m tests.benchmarks.methods STREAM.yaml [STREAM.yaml] --tasks trec6,sst2 --state runs.jsonl > methods.json

A task is taken from the first stream that has it; backbone and seed are the first stream's. Every method gets the same
rows (at most `--rows` of train), epochs, batches, pooling and closed-form head, and four learning rates to choose from:
the best by the mean over two tasks' validation rows, one seed. Then one run per task and seed at that rate. Test rows
are read for those runs alone. A run that is in the state file is not made again.

memory: bytes of what a training step keeps for its backward pass, of a batch of the task's longest rows, and of the
trained values four times over (value, gradient, Adam's two moments). The backbone's own weights are not counted.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import attached, method_settings
from continual.errors import TrainingError
from continual.experiments.studies.ranking import METHODS
from continual.kinds import kind_of_delta
from continual.metrics import score_with_interval
from continual.training.training_run import train
from tasks import Method, Stream, TaskSpec, load_task, read_stream
from tasks.rows import sample
from tests.benchmarks.run_log import Record, State, TrialTask, chosen_names, mean, quieten, say

SEARCH_TASKS = 2  # those with the fewest tokens
DENSE = (5e-5, 1e-4, 2e-4, 5e-4)
USUAL = (5e-4, 1e-3, 2e-3, 4e-3)
SMALL = (2e-3, 5e-3, 1e-2, 2e-2)
DENSE_METHODS = ("full", "last_layer", "selective")
SMALL_METHODS = ("probe", "prefix", "prompt", "ia3", "layer_norm", "bitfit", "masking", "intrinsic")  # few parameters


@dataclass(frozen=True)
class Entry:
    """A method with its settings, and the learning rates to choose from."""

    method: Method
    rates: tuple[float, ...]


def _rates(method: Method) -> tuple[float, ...]:
    return DENSE if method.name in DENSE_METHODS else SMALL if method.name in SMALL_METHODS else USUAL


ENTRIES = {label: Entry(method, _rates(method)) for label, method in METHODS.items()}


def make_trial_task(backbone: Backbone, stream: Stream, spec: TaskSpec, *, rows: int, seed: int) -> TrialTask:
    """Load a task with at most `rows` train rows, the same for all seeds; `seed` is that of training."""
    data = load_task(spec, folder=stream.folder, seed=stream.seed)
    few = sample(data.train, rows, seed=stream.seed, keep_labels=True)
    return TrialTask(backbone, replace(data, train=few), rows, seed)


def searched(trial_task: TrialTask, label: str, rate: float, state: State) -> float:
    """Return the best validation score of a run at a learning rate; 0 for one that diverges."""
    about = {
        "entry": label,
        "task": trial_task.data.spec.name,
        "seed": trial_task.seed,
        "rows": len(trial_task.train.tokens),
    }
    finished = state.find(**about, stage="search", learning_rate=rate)
    if finished is None:
        settings = method_settings(ENTRIES[label].method)
        try:
            trained = train(trial_task.backbone, trial_task.fresh(label, settings), **trial_task.training(rate))
            record: Record = {"validation": trained.score, "curve": [epoch.score for epoch in trained.curve]}
        except TrainingError:
            record = {"validation": 0.0, "curve": []}
        finished = state.add({**about, "stage": "search", "learning_rate": rate, **record})
    return float(finished["validation"])


def final(trial_task: TrialTask, label: str, rate: float, state: State) -> None:
    """Run once at the chosen rate and score on the test rows."""
    about = {
        "entry": label,
        "task": trial_task.data.spec.name,
        "seed": trial_task.seed,
        "rows": len(trial_task.train.tokens),
    }
    if state.find(**about, stage="final", learning_rate=rate):
        return
    settings, start = method_settings(ENTRIES[label].method), time.perf_counter()
    trained = train(trial_task.backbone, trial_task.fresh(label, settings), **trial_task.training(rate))
    test = trial_task.prepared(trial_task.data.test)
    metric = trial_task.data.spec.metric
    answers = trial_task.classes(trained.delta, test)
    values = sum(value.numel() for value in trained.delta.values.values())
    state.add(
        {
            **about,
            "stage": "final",
            "learning_rate": rate,
            "validation": trained.score,
            "test": score_with_interval(metric, test.classes.tolist(), answers).value,
            "parameters": values,
            "share": values / trial_task.backbone.parameter_count,
            "memory": step_memory(trial_task, label),
            "examples_per_second": trained.examples_per_second,
            "seconds": round(time.perf_counter() - start, 1),
        }
    )


def step_memory(trial_task: TrialTask, label: str) -> int:
    """Return the bytes that a training step holds beside the backbone's weights, for a batch of the longest rows."""
    delta = trial_task.fresh(label, method_settings(ENTRIES[label].method)).trainable(trial_task.backbone.device)
    lengths = trial_task.train.tokens.lengths
    longest = sorted(range(len(lengths)), key=lambda row: -lengths[row])[: trial_task.budget.batch_size]
    weights = {parameter.untyped_storage().data_ptr() for parameter in trial_task.backbone.model.parameters()}
    saved_bytes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with its gradient function, a saved output would keep itself alive

    storages = []  # alive until the end, or a later storage could take an earlier one's address
    with attached(trial_task.backbone, delta), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        storages.append(kind_of_delta(delta).loss(trial_task.backbone, delta, trial_task.train, longest))
    trained = sum(tensor.numel() for tensor in delta.tensors().values() if tensor.requires_grad)
    return sum(saved_bytes.values()) + 4 * 4 * trained


def document(stream: Stream, backbone: Backbone, state: State, rows: int) -> Record:
    """Return every entry's mean test score over the tasks that all of them finished, and its costs."""
    finals = [record for record in state.records if record["stage"] == "final"]
    labels = [label for label in ENTRIES if any(record["entry"] == label for record in finals)]
    done = {(r["entry"], r["task"]) for r in finals}
    tasks = sorted({r["task"] for r in finals if all((label, r["task"]) in done for label in labels)})
    return {
        "stream": stream.name,
        "backbone": backbone.name,
        "rows": rows,
        "tasks": tasks,
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        | {"device": str(backbone.device), "dtype": str(backbone.dtype).removeprefix("torch.")},
        "entries": {label: _summary([r for r in finals if r["entry"] == label], tasks) for label in labels},
    }


def _summary(runs: list[Record], tasks: list[str]) -> Record:
    by_task = {task: [r["test"] for r in runs if r["task"] == task] for task in tasks}
    seeds = [
        [r["test"] for r in runs if r["task"] in tasks and r["seed"] == seed] for seed in {r["seed"] for r in runs}
    ]
    means = [fmean(scores) for scores in seeds if len(scores) == len(tasks) > 0]
    return {
        "mean": mean(fmean(scores) for scores in by_task.values()),
        "spread": stdev(means) if len(means) > 1 else None,
        "seeds": len(means),
        "tasks": {task: fmean(scores) for task, scores in by_task.items()},
        "learning_rate": runs[0]["learning_rate"],
        "share": runs[0]["share"],
        "parameters": runs[0]["parameters"],
        "memory": max(r["memory"] for r in runs),
        "examples_per_second": mean(r["examples_per_second"] for r in runs),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("streams", type=Path, nargs="+")
    parser.add_argument("--state", type=Path, help="JSON lines: finished runs are read from it and appended to it")
    parser.add_argument("--tasks", help="names, by commas; all of the stream's otherwise")
    parser.add_argument("--entries", help=f"by commas, of {', '.join(ENTRIES)}")
    parser.add_argument("--rows", type=int, default=1000, help="train rows at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="only print the document of what the state file holds")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    streams, state = [read_stream(path) for path in arguments.streams], State(arguments.state)
    stream = streams[0]
    backbone = load_backbone(stream.backbone or "minilm")
    quieten()
    if not arguments.report:
        specs = {spec.name: (benchmark, spec) for benchmark in reversed(streams) for spec in benchmark.resolved()}
        names = chosen_names(list(specs), arguments.tasks)
        trial_tasks = [make_trial_task(backbone, *specs[name], rows=arguments.rows, seed=stream.seed) for name in names]
        trial_tasks.sort(key=lambda trial_task: sum(trial_task.train.tokens.lengths))
        rates: dict[str, float] = {}
        labels = chosen_names(list(ENTRIES), arguments.entries)
        for label in labels:
            benchmark = {
                rate: fmean(searched(trial_task, label, rate, state) for trial_task in trial_tasks[:SEARCH_TASKS])
                for rate in ENTRIES[label].rates
            }
            rates[label] = max(benchmark, key=lambda rate: benchmark[rate])
        say(f"learning rates: {rates}")
        for seed in range(stream.seed, stream.seed + arguments.seeds):
            for trial_task in trial_tasks:
                for label in labels:
                    final(replace(trial_task, seed=seed), label, rates[label], state)
    print(json.dumps(document(stream, backbone, state, arguments.rows), indent=2))


if __name__ == "__main__":
    main()
