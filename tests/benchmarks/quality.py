"""Test scores of our method, PEFT's LoRA and full fine-tuning on the tasks of a stream.

    python -m tests.benchmarks.quality STREAM.yaml --state runs.jsonl > quality.json

Variants (`--arms`): `closed_form` is the closed-form head on frozen features, without a step; `peft` is PEFT's LoRA
(rank 8, query and value) with transformers' classification head; `peft_our_head` the same LoRA with our pooling and
the closed-form head as its start; `ours` is `continual.training.training_run.train` from the closed-form start; `full`
trains every weight, with transformers' head.

Equal in all variants: rows, batches (the same lists of indices), epochs, warm-up, decay, clipping, precision, seed, the
checkpoint's own dropout, the best epoch on validation rows (the start is a candidate), and four learning rates to
choose from. Different: transformers' heads run in the precision of the backbone, ours in float32.
A variant's learning rate is the best of four by the mean over three tasks' validation rows, after training on few train
rows; then one run per task uses all rows.
Test rows are read for that run alone. One seed. A run that is in the state file is not repeated, so a state file
belongs to one stream, one backbone and one version of the code.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch.nn import functional as F

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import METHODS
from continual.errors import TrainingError
from continual.features.pooling import encode
from continual.kinds.classification import ClassificationRows
from continual.metrics import metric_score, score_with_interval
from continual.training.training_run import train
from tasks import Stream, load_task, read_stream
from tests.benchmarks.baselines import RANK, Fitted, Problem, fit, full, peft_lora, peft_lora_with_head
from tests.benchmarks.run_log import SEARCH_VALIDATION_ROWS, Record, State, TrialTask, chosen_names, mean, quieten, say

SEARCH_TASKS = 3  # those with the fewest tokens
LORA_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
FULL_RATES = (2e-5, 5e-5, 1e-4, 2e-4)


Variant = Callable[[TrialTask, float], Fitted]


def _closed_form(trial_task: TrialTask, learning_rate: float) -> Fitted:
    def answers(rows: ClassificationRows) -> list[int]:
        vectors = encode(trial_task.backbone, rows.tokens)
        return F.linear(vectors, trial_task.start.weight, trial_task.start.bias).argmax(dim=1).tolist()

    held_out = trial_task.validation
    return Fitted((metric_score(trial_task.data.spec.metric, held_out.classes.tolist(), answers(held_out)),), answers)


def _ours(trial_task: TrialTask, learning_rate: float) -> Fitted:
    start = trial_task.fresh("lora", METHODS["lora"].model_validate({"rank": RANK}))
    trained = train(trial_task.backbone, start, **trial_task.training(learning_rate))
    curve = tuple(epoch.score for epoch in trained.curve)
    return Fitted(curve, lambda rows: trial_task.classes(trained.delta, rows))


def _peft(trial_task: TrialTask, learning_rate: float) -> Fitted:
    return fit(
        trial_task.backbone,
        peft_lora(trial_task.checkpoint, len(trial_task.data.labels)),
        Problem(**trial_task.training(learning_rate)),
    )


def _peft_our_head(trial_task: TrialTask, learning_rate: float) -> Fitted:
    start = trial_task.start
    network = peft_lora_with_head(trial_task.checkpoint, start.weight, start.bias, trial_task.backbone.pooling)
    return fit(trial_task.backbone, network, Problem(**trial_task.training(learning_rate)))


def _full(trial_task: TrialTask, learning_rate: float) -> Fitted:
    return fit(
        trial_task.backbone,
        full(trial_task.checkpoint, len(trial_task.data.labels)),
        Problem(**trial_task.training(learning_rate)),
    )


# Every arm with the learning rates it may choose from; one that takes no step has none.
VARIANTS: Mapping[str, tuple[Variant, tuple[float, ...]]] = {
    "closed_form": (_closed_form, ()),
    "peft": (_peft, LORA_RATES),
    "peft_our_head": (_peft_our_head, LORA_RATES),
    "ours": (_ours, LORA_RATES),
    "full": (_full, FULL_RATES),
}


def chosen_rate(trial_tasks: Sequence[TrialTask], name: str, state: State) -> float | None:
    """Return a variant's learning rate with the best mean validation score on the search tasks; lowest of equals."""
    rates = VARIANTS[name][1]
    means = {
        rate: fmean(searched(trial_task.few, name, rate, state)["validation"] for trial_task in trial_tasks)
        for rate in rates
    }
    return max(means, key=lambda rate: means[rate]) if means else None


def final(trial_task: TrialTask, name: str, rate: float | None, state: State) -> None:
    """Run a variant on all rows at its learning rate, unless that run is finished."""
    about = _about(trial_task, name)
    if state.find(**about, stage="final", rows=len(trial_task.data.train), learning_rate=rate):
        return
    start = time.perf_counter()
    torch.manual_seed(trial_task.seed)
    fitted = VARIANTS[name][0](trial_task, rate or 0.0)
    test = trial_task.prepared(trial_task.data.test)
    measured = score_with_interval(trial_task.data.spec.metric, test.classes.tolist(), fitted.answers(test))
    scores = {"test": measured.value, "low": measured.low, "high": measured.high, "test_rows": measured.rows}
    state.add(_record(about, "final", rate, trial_task, fitted, start) | scores)


def searched(trial_task: TrialTask, name: str, rate: float, state: State) -> Record:
    """Run one learning rate on few rows; a rate at which training diverges scores 0."""
    about = _about(trial_task, name)
    if finished := state.find(**about, stage="search", learning_rate=rate, rows=len(trial_task.data.train)):
        return finished
    start = time.perf_counter()
    torch.manual_seed(trial_task.seed)
    try:
        fitted = VARIANTS[name][0](trial_task, rate)
    except TrainingError:
        fitted = Fitted((0.0,), lambda rows: [])
    return state.add(_record(about, "search", rate, trial_task, fitted, start))


def _about(trial_task: TrialTask, name: str) -> Record:
    return {"arm": name, "task": trial_task.data.spec.name, "seed": trial_task.seed}


def _record(
    about: Record, stage: str, rate: float | None, trial_task: TrialTask, fitted: Fitted, start: float
) -> Record:
    return about | {
        "stage": stage,
        "learning_rate": rate,
        "rows": len(trial_task.data.train),
        "validation_rows": len(trial_task.validation.tokens),
        "validation": fitted.validation,
        "curve": fitted.curve,
        "seconds": round(time.perf_counter() - start, 1),
    }


def document(stream: Stream, backbone: Backbone, records: Iterable[Record]) -> Record:
    """Return all results as one JSON document; means are over the tasks that all variants finished."""
    finals = [record for record in records if record["stage"] == "final" and record["seed"] == stream.seed]
    shown = ("validation", "test", "learning_rate", "low", "high", "test_rows", "rows", "seconds")
    tasks: dict[str, Record] = {record["task"]: {} for record in finals}
    for record in finals:
        tasks[record["task"]][record["arm"]] = {key: record[key] for key in shown}
    variants = [variant for variant in VARIANTS if any(variant in task for task in tasks.values())]
    whole = [task for task in tasks.values() if all(variant in task for variant in variants)]
    return {
        "stream": stream.name,
        "backbone": backbone.name,
        "seed": stream.seed,
        "machine": {"cpus": os.cpu_count(), "torch": torch.__version__, "device": str(backbone.device)}
        | {"dtype": str(backbone.dtype).removeprefix("torch.")},
        "method": f"learning rate per arm: the best of four by mean score on at most {SEARCH_VALIDATION_ROWS} "
        "validation rows of the search tasks, with few train rows and the full number of epochs; then one run per task "
        "with all `rows` at that rate, best epoch on all validation rows; test rows for that run alone; one seed",
        "search": sorted({(record["task"], record["rows"]) for record in records if record["stage"] == "search"}),
        "tasks": tasks,
        "tasks_in_means": [name for name, task in tasks.items() if task in whole],
        "means": {variant: mean(task[variant]["test"] for task in whole) for variant in variants},
        "ours_minus": {
            variant: _differences(tasks, variant) for variant in variants if variant != "ours" and "ours" in variants
        },
    }


def _differences(tasks: Mapping[str, Record], variant: str) -> Record:
    pairs = {name: task for name, task in tasks.items() if {"ours", variant} <= set(task)}
    both = {name: task["ours"]["test"] - task[variant]["test"] for name, task in pairs.items()}
    return {"mean": mean(both.values()), "tasks": both}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("--state", type=Path, help="JSON lines: finished runs are read from it and appended to it")
    parser.add_argument("--tasks", help="names, by commas; all of the stream's otherwise")
    parser.add_argument("--arms", help=f"names, by commas, of {', '.join(VARIANTS)}")
    parser.add_argument("--search-rows", type=int, default=2000, help="train rows on which learning rates are compared")
    parser.add_argument("--report", action="store_true", help="only print the document of what the state file holds")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    stream, state = read_stream(arguments.stream), State(arguments.state)
    backbone = load_backbone(stream.backbone or "minilm")
    quieten()
    names = chosen_names([task.name for task in stream.tasks], arguments.tasks)
    if not arguments.report:
        loaded = [load_task(t, folder=stream.folder, seed=stream.seed) for t in stream.resolved() if t.name in names]
        trial_tasks = [TrialTask(backbone, data, arguments.search_rows, stream.seed) for data in loaded]
        trial_tasks.sort(key=lambda trial_task: sum(trial_task.train.tokens.lengths))
        variants = chosen_names(list(VARIANTS), arguments.arms)
        rates = {variant: chosen_rate(trial_tasks[:SEARCH_TASKS], variant, state) for variant in variants}
        say(f"learning rates: {rates}")
        for trial_task in trial_tasks:
            for variant in variants:
                final(trial_task, variant, rates[variant], state)
    print(json.dumps(document(stream, backbone, state.records), indent=2))


if __name__ == "__main__":
    main()
