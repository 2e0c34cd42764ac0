"""How good is a delta? Test scores of our method beside PEFT's LoRA and full fine-tuning, on the tasks of a stream.

    python -m tests.benchmarks.quality STREAM.yaml --state runs.jsonl > quality.json

Arms: `closed_form` is the head in closed form on frozen features, without a step; `peft` is PEFT's LoRA (rank 8, query
and value) with transformers' own classification head; `peft_our_head` the same LoRA with our pooling and the
closed-form head as its start; `ours` is `continual.training.training_run.train` from the closed-form start; `full` trains every
weight, with transformers' head.

Alike in all arms: rows, batches (the very same lists of indices), epochs, warm-up, decay, clipping, precision, seed,
the checkpoint's own dropout, the best epoch on validation rows (the start is a candidate), and four learning rates to
choose from. Not alike: transformers' heads run in the precision of the backbone, ours in float32.
An arm's learning rate is the best of four by the mean over three tasks' validation rows, after training on few train
rows; then one run per task has all of them.
Test rows are read for that run alone. One seed. A run that is in the state file already is not made again, so a state
file belongs to one stream, one backbone and one version of the code.
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
from tests.benchmarks.run_log import SEARCH_VALIDATION_ROWS, Bench, Record, State, chosen_names, mean, quieten, say

SEARCH_TASKS = 3  # those with the fewest tokens
LORA_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
FULL_RATES = (2e-5, 5e-5, 1e-4, 2e-4)


Arm = Callable[[Bench, float], Fitted]


def _closed_form(bench: Bench, learning_rate: float) -> Fitted:
    def answers(rows: ClassificationRows) -> list[int]:
        vectors = encode(bench.backbone, rows.tokens)
        return F.linear(vectors, bench.start.weight, bench.start.bias).argmax(dim=1).tolist()

    held_out = bench.validation
    return Fitted((metric_score(bench.data.spec.metric, held_out.classes.tolist(), answers(held_out)),), answers)


def _ours(bench: Bench, learning_rate: float) -> Fitted:
    start = bench.fresh("lora", METHODS["lora"].model_validate({"rank": RANK}))
    trained = train(bench.backbone, start, **bench.training(learning_rate))
    curve = tuple(epoch.score for epoch in trained.curve)
    return Fitted(curve, lambda rows: bench.classes(trained.delta, rows))


def _peft(bench: Bench, learning_rate: float) -> Fitted:
    return fit(
        bench.backbone, peft_lora(bench.checkpoint, len(bench.data.labels)), Problem(**bench.training(learning_rate))
    )


def _peft_our_head(bench: Bench, learning_rate: float) -> Fitted:
    start = bench.start
    network = peft_lora_with_head(bench.checkpoint, start.weight, start.bias, bench.backbone.pooling)
    return fit(bench.backbone, network, Problem(**bench.training(learning_rate)))


def _full(bench: Bench, learning_rate: float) -> Fitted:
    return fit(bench.backbone, full(bench.checkpoint, len(bench.data.labels)), Problem(**bench.training(learning_rate)))


# Every arm with the learning rates it may choose from; one that takes no step has none.
ARMS: Mapping[str, tuple[Arm, tuple[float, ...]]] = {
    "closed_form": (_closed_form, ()),
    "peft": (_peft, LORA_RATES),
    "peft_our_head": (_peft_our_head, LORA_RATES),
    "ours": (_ours, LORA_RATES),
    "full": (_full, FULL_RATES),
}


def chosen_rate(benches: Sequence[Bench], name: str, state: State) -> float | None:
    """The learning rate of an arm with the best mean on held-out rows of the search tasks; of a tie the lowest."""
    rates = ARMS[name][1]
    means = {rate: fmean(searched(bench.few, name, rate, state)["validation"] for bench in benches) for rate in rates}
    return max(means, key=lambda rate: means[rate]) if means else None


def final(bench: Bench, name: str, rate: float | None, state: State) -> None:
    """Run an arm with all rows, at its learning rate; nothing where that run is there already."""
    about = _about(bench, name)
    if state.find(**about, stage="final", rows=len(bench.data.train), learning_rate=rate):
        return
    began = time.perf_counter()
    torch.manual_seed(bench.seed)
    fitted = ARMS[name][0](bench, rate or 0.0)
    test = bench.prepared(bench.data.test)
    measured = score_with_interval(bench.data.spec.metric, test.classes.tolist(), fitted.answers(test))
    scores = {"test": measured.value, "low": measured.low, "high": measured.high, "test_rows": measured.rows}
    state.add(_record(about, "final", rate, bench, fitted, began) | scores)


def searched(bench: Bench, name: str, rate: float, state: State) -> Record:
    """One learning rate's run on few rows; a rate at which training diverges scores nothing."""
    about = _about(bench, name)
    if known := state.find(**about, stage="search", learning_rate=rate, rows=len(bench.data.train)):
        return known
    began = time.perf_counter()
    torch.manual_seed(bench.seed)
    try:
        fitted = ARMS[name][0](bench, rate)
    except TrainingError:
        fitted = Fitted((0.0,), lambda rows: [])
    return state.add(_record(about, "search", rate, bench, fitted, began))


def _about(bench: Bench, name: str) -> Record:
    return {"arm": name, "task": bench.data.spec.name, "seed": bench.seed}


def _record(about: Record, stage: str, rate: float | None, bench: Bench, fitted: Fitted, began: float) -> Record:
    return about | {
        "stage": stage,
        "learning_rate": rate,
        "rows": len(bench.data.train),
        "validation_rows": len(bench.validation.tokens),
        "validation": fitted.validation,
        "curve": fitted.curve,
        "seconds": round(time.perf_counter() - began, 1),
    }


def document(stream: Stream, backbone: Backbone, records: Iterable[Record]) -> Record:
    """What was measured, as one JSON document; means are over the tasks that all the arms shown have finished."""
    finals = [record for record in records if record["stage"] == "final" and record["seed"] == stream.seed]
    shown = ("validation", "test", "learning_rate", "low", "high", "test_rows", "rows", "seconds")
    tasks: dict[str, Record] = {record["task"]: {} for record in finals}
    for record in finals:
        tasks[record["task"]][record["arm"]] = {key: record[key] for key in shown}
    arms = [arm for arm in ARMS if any(arm in task for task in tasks.values())]
    whole = [task for task in tasks.values() if all(arm in task for arm in arms)]
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
        "means": {arm: mean(task[arm]["test"] for task in whole) for arm in arms},
        "ours_minus": {arm: _differences(tasks, arm) for arm in arms if arm != "ours" and "ours" in arms},
    }


def _differences(tasks: Mapping[str, Record], arm: str) -> Record:
    pairs = {name: task for name, task in tasks.items() if {"ours", arm} <= set(task)}
    both = {name: task["ours"]["test"] - task[arm]["test"] for name, task in pairs.items()}
    return {"mean": mean(both.values()), "tasks": both}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("--state", type=Path, help="JSON lines: finished runs are read from it and appended to it")
    parser.add_argument("--tasks", help="names, by commas; all of the stream's otherwise")
    parser.add_argument("--arms", help=f"names, by commas, of {', '.join(ARMS)}")
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
        benches = [Bench(backbone, data, arguments.search_rows, stream.seed) for data in loaded]
        benches.sort(key=lambda bench: sum(bench.train.tokens.lengths))
        arms = chosen_names(list(ARMS), arguments.arms)
        rates = {arm: chosen_rate(benches[:SEARCH_TASKS], arm, state) for arm in arms}
        say(f"learning rates: {rates}")
        for bench in benches:
            for arm in arms:
                final(bench, arm, rates[arm], state)
    print(json.dumps(document(stream, backbone, state.records), indent=2))


if __name__ == "__main__":
    main()
