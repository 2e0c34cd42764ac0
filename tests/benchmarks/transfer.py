"""Benefit of warm starts: each task of a stream learned from few or all rows, with and without one.

    continual run STREAM.yaml --home HOME
    python -m tests.benchmarks.transfer STREAM.yaml --home HOME [--shots 16] [--seeds 0,1,2] > transfer.json

Every task is learned again as a new task beside the others in HOME, from three starts with the same budget: `warm`, as
`warm_start: auto` decides, from scratch with the closed-form head, and from scratch with a random head. With `--shots`
each label has so many train rows; without, all are used. With `--chain` HOME is left out: each task may start only from
the earlier ones of the stream, learned from as few rows.

For each task: mean scores over the seeds, how the warm start was chosen, the gain over scratch with its paired 95 %
interval over test rows, and the share of its steps after which training from the warm start has reached the final
validation score of training from scratch (None where it never does).
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import method_settings
from continual.inference.task_statistics import task_signature
from continual.kinds import ForwardContext, HeadStart, answer_labels
from continual.learning.learn import trial_score, warm_start_candidates
from continual.learning.prepared import PreparedTask, prepare_task
from continual.metrics import metric_score
from continual.streams.position_learner import learn_task
from continual.training.training_run import TrainingResult
from continual.transfer.neighbours import nearest_tasks
from continual.transfer.warm_start import WarmStartCandidate, choose_start, from_scratch
from registry import Registry
from tasks import Stream, load_stream, read_stream
from tests.benchmarks.run_log import quieten, say

HEAD_SCALE = 0.02  # deviation of a random head's weights, as transformers draws them


@dataclass(frozen=True)
class TrainedStart:
    """A trained start: the result, its test score, and which test rows it answers correctly."""

    trained: TrainingResult
    score: float
    right: torch.Tensor


def compared(backbone: Backbone, registry: Registry, task: PreparedTask, *, seed: int) -> dict[str, Any]:
    """Train one task from the three starts."""
    rows, held_out = (ForwardContext(task.backbone, None, part) for part in (task.train, task.validation))
    signature, name, settings = task_signature(task.kind, rows), task.data.spec.name, method_settings(task.method)
    scratch = from_scratch(task.kind.closed_form_start(rows, held_out))
    labels = task.data.labels
    neighbours = nearest_tasks(task.backbone, registry, signature, task=name, labels=labels, settings=settings)
    candidates = warm_start_candidates(task, scratch, neighbours, train=rows, held_out=held_out)
    score_trial = partial(trial_score, task, seed=seed)
    start = choose_start(
        task.backbone, "auto", scratch=scratch, candidates=candidates, settings=settings, trial_score=score_trial
    )
    plain = _train_start(task, scratch, seed=seed)
    warm = plain if start is scratch else _train_start(task, start, seed=seed)
    blind = _train_start(task, _random(task, scratch, seed=seed), seed=seed)
    return {
        "task": name,
        "seed": seed,
        "start": start.kind,
        "parents": {neighbour.name: round(weight, 3) for neighbour, weight in start.sources},
        "warm": warm.score,
        "scratch": plain.score,
        "random_head": blind.score,
        "steps": _reached(warm.trained, plain.trained),
        "differences": (warm.right - plain.right).tolist(),
    }


def _train_start(task: PreparedTask, start: WarmStartCandidate, *, seed: int) -> TrainedStart:
    trained = task.training_run(start, seed=seed).run()
    kind, context = task.kind, ForwardContext(task.backbone, trained.delta, task.test)
    answers = answer_labels(kind.answers(task.backbone, kind.outputs(context, trained.delta.head), task.test))
    score = metric_score(task.data.spec.metric, task.test.truth, answers, kind=kind.metric_kind)
    right = torch.tensor([a == b for a, b in zip(answers, task.test.truth, strict=True)]).double()
    return TrainedStart(trained, score, right)


def _random(task: PreparedTask, scratch: WarmStartCandidate, *, seed: int) -> WarmStartCandidate:
    head, draw = scratch.start.head, torch.Generator().manual_seed(seed)
    assert head is not None
    weight = HEAD_SCALE * torch.randn(head.weight.shape, generator=draw)
    drawn = replace(head, weight=weight, bias=torch.zeros_like(head.bias))
    return from_scratch(HeadStart(drawn, scratch.start.held_out_quality))


def _reached(warm: TrainingResult, scratch: TrainingResult) -> float | None:
    """Return the share of epochs after which the warm start reaches scratch's best validation score."""
    epochs = len(warm.curve) - 1
    reached = [epoch.number for epoch in warm.curve if epoch.score >= scratch.score]
    return reached[0] / epochs if reached and epochs else None


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the results by task, and over tasks."""
    tasks = []
    for name in dict.fromkeys(run["task"] for run in runs):
        task_runs = [run for run in runs if run["task"] == name]
        # The rows of a seed are the same test rows: their mean over seeds is what is paired.
        paired = torch.tensor([run["differences"] for run in task_runs]).mean(dim=0)
        gain, error = float(paired.mean()), float(paired.std()) / math.sqrt(len(paired))
        reached = [run["steps"] for run in task_runs]
        tasks.append(
            {
                "task": name,
                **{variant: fmean(run[variant] for run in task_runs) for variant in ("warm", "scratch", "random_head")},
                "starts": [run["start"] for run in task_runs],
                "gain": gain,
                "low": gain - 1.96 * error,
                "high": gain + 1.96 * error,
                "steps": median([math.inf if share is None else share for share in reached]),
            }
        )
    means = {variant: fmean(task[variant] for task in tasks) for variant in ("warm", "scratch", "random_head")}
    return {
        **means,
        "gain_over_scratch": means["warm"] - means["scratch"],
        "gain_over_random_head": means["warm"] - means["random_head"],
        "wholly_below": [task["task"] for task in tasks if task["high"] < -0.005],
        "median_steps": median(task["steps"] for task in tasks),
        "tasks": tasks,
    }


def streams(stream: Stream, *, shots: int | None, seeds: Sequence[int], tasks: Sequence[str]) -> Iterator[Stream]:
    """Yield the stream for each seed, with so many rows of each label and the selected tasks only."""
    for seed in seeds:
        chosen = [task for task in stream.tasks if not tasks or task.name in tasks]
        few = [task.model_copy(update={"warm_start": "auto", "shots": shots or task.shots}) for task in chosen]
        yield stream.model_copy(update={"seed": seed, "tasks": tuple(few)})


def measured(backbone: Backbone, stream: Stream, home: Path | None, state: Path | None) -> Iterator[dict[str, Any]]:
    """Return the results of every task for one seed; finished runs in `state` are not repeated."""
    finished = [json.loads(line) for line in state.read_text().splitlines()] if state and state.exists() else []
    done = {(run["task"], run["seed"]): run for run in finished}
    with tempfile.TemporaryDirectory() as folder:
        place = home or Path(folder)
        registry = Registry.open(f"sqlite:///{place / 'registry.db'}", str(place / "blobs"))
        for data in load_stream(stream):
            run = done.get((data.spec.name, stream.seed))
            if run is None:
                run = compared(backbone, registry, prepare_task(backbone, data), seed=stream.seed)
                if state:
                    with state.open("a") as file:
                        file.write(json.dumps(run) + "\n")
            if home is None:  # a chain: the next may start from this one
                learn_task(backbone, registry, data, stream)
            say(f"{run['task']} seed {run['seed']}: {run['start']} {run['warm']:.3f} scratch {run['scratch']:.3f}")
            yield run
        registry.close()


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--home", type=Path)
    source.add_argument("--chain", action="store_true")
    parser.add_argument("--shots", type=int)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--state", type=Path, help="finished runs, to go on from")
    arguments = parser.parse_args()
    quieten()
    stream = read_stream(arguments.stream)
    seeds, tasks = (
        [int(seed) for seed in arguments.seeds.split(",")],
        [name for name in arguments.tasks.split(",") if name],
    )
    assert stream.backbone is not None
    backbone = load_backbone(stream.backbone)
    runs = [
        run
        for seeded_stream in streams(stream, shots=arguments.shots, seeds=seeds, tasks=tasks)
        for run in measured(backbone, seeded_stream, arguments.home, arguments.state)
    ]
    print(json.dumps(summary(runs), indent=1))


if __name__ == "__main__":
    main()
