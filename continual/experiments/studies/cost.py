"""What training and answering take: memory, seconds of a step, examples per second, and the latency of a pass.

Ding et al. (2022), "Delta Tuning" (arXiv:2203.06904), compare the memory of methods by the size of the batch. On a GPU
it is what the allocator held at most, else what a process of its own, in which nothing else was ever done, had
resident at most. Each arm has such a process: memory that was freed is not always given back.
"""

import multiprocessing
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import Delta
from continual.experiments.studies.aggregation import (
    group_lines,
    mean_outcomes,
    means_table,
    method_of,
    sweep_trials,
    task_of,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.features.tokens import sorted_batches
from continual.kinds import ForwardContext, HeadStart
from continual.learning.prepared import PreparedTask, prepare_task
from continual.reports.html import Section
from continual.reports.html.study_result import Result
from continual.reports.plots import line_plot
from continual.training.training_run import TrainingResult
from continual.transfer.warm_start import from_scratch
from tasks import Method

METHODS = ("full", "lora", "adapter", "prefix", "bitfit", "probe")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
UNIT = 1024  # bytes; of what the system says of memory


@final
class Cost(Study):
    """methods: what is compared · batch_sizes: rows of a batch, in training and in answering · steps: how many training
    steps are timed, and how many passes.
    """

    shows: ClassVar[str] = "peak memory, seconds of a step, examples per second, latency, by batch size"
    paper: ClassVar[str] = "Ding et al. 2022, arXiv:2203.06904, memory"

    methods: tuple[Method, ...] = Field(default=tuple(Method(name=name) for name in METHODS), min_length=1)
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 8, 32), min_length=1)
    steps: int = Field(default=10, ge=1)

    def trials(self, bench: TrialRunner) -> Iterable[StudyTrial]:
        for size in self.batch_sizes:
            measured = {"batch_size": size, "steps": self.steps, "machine": _machine(bench.backbone)}
            yield from sweep_trials(bench, self.methods, rates=[1.0], epochs=1, extra=measured)

    def measure(self, bench: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        backbone = bench.backbone
        where = (backbone.name, str(backbone.device), str(backbone.dtype).removeprefix("torch."))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            return alone.submit(costs, *where, trial, torch.get_num_threads()).result()

    def result(self, found: Sequence[TrialResult]) -> Result:
        alone = {"method": method_of, "batch size": _size}
        values = ("memory_MiB", "added_MiB", "seconds_per_step", "examples_per_second", "latency_ms")
        memory = mean_outcomes(found, "memory_MiB", lambda trial: f"memory_MiB.{method_of(trial)}.{_size(trial)}")
        return Result(
            (
                Section("Cost of each method", TEXT, table=means_table(found, alone, values)),
                *(_figure(found, value, up) for value, up in FIGURES.items()),
                Section("Each task", "", table=means_table(found, {"task": task_of, **alone}, values)),
            ),
            memory,
        )


TEXT = (
    "Means over tasks and seeds. memory: the most there was while training; added: beyond what was there with the "
    "backbone loaded. latency: of one pass over a batch of typical length, the median."
)
FIGURES = {
    "memory_MiB": "peak memory of training, MiB",
    "examples_per_second": "examples per second of training",
    "latency_ms": "latency of a batch, ms",
}


def costs(name: str, device: str, dtype: str, trial: StudyTrial, threads: int) -> Mapping[str, float]:
    """What one arm takes, in this process."""
    torch.set_num_threads(threads)
    size, steps = trial.extra["batch_size"], trial.extra["steps"]
    backbone = load_backbone(name, device=device, dtype=dtype)
    cuda = backbone.device.type == "cuda"
    _trained(backbone, _few(trial, size, batches=1))  # the first time pays for what is made once
    before = _reset(cuda=cuda)
    task, trained = _trained(backbone, _few(trial, size, batches=steps))
    peak = _peak(cuda=cuda)
    rows = len(task.train.tokens)
    return {
        "memory_MiB": peak / UNIT**2,
        "added_MiB": (peak - before) / UNIT**2,
        "seconds_per_step": trained.seconds / -(-rows // size),
        "examples_per_second": rows / trained.seconds,
        "latency_ms": 1000 * _latency(task, trained.delta, size, passes=steps),
    }


def _trained(backbone: Backbone, trial: StudyTrial) -> tuple[PreparedTask, TrainingResult]:
    """Trained from a head of zeros: so few rows may lack labels, which a closed form cannot do without."""
    task = prepare_task(backbone, trial.selected_rows)
    blank = from_scratch(HeadStart(task.kind.zero_head(task.backbone), torch.empty(0)))
    return task, task.training_run(blank, seed=trial.seed).run()


def _few(trial: StudyTrial, size: int, *, batches: int) -> StudyTrial:
    """The trial with as many rows as these batches have, or as there are, and no more held-out rows than a batch."""
    data, budget = trial.data, trial.budget.model_copy(update={"batch_size": size})
    few = data.train.select(range(min(size * batches, len(data.train))))
    held_out = data.validation.select(range(min(size, len(data.validation))))
    return replace(trial, data=replace(data, train=few, validation=held_out), budget=budget)


def _latency(task: PreparedTask, delta: Delta, size: int, *, passes: int) -> float:
    """The median time, in seconds, of a pass over the batch of middle length, with the delta in place."""
    batches = list(sorted_batches(task.train.tokens.lengths, size))
    texts = task.data.train.select(batches[len(batches) // 2])
    batch = task.kind.prepare(task.backbone, texts, max_length=task.budget.max_length)
    seen = ForwardContext(task.backbone, delta, batch)
    return statistics.median(_seconds(lambda: task.kind.outputs(seen, delta.head)) for _ in range(passes))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()  # ends with its answer on the CPU
    return time.perf_counter() - began


def _reset(*, cuda: bool) -> int:
    """Forget the peak so far, where that is possible; bytes that are in use."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    elif RESET.exists():
        RESET.write_text("5")
    return _peak(cuda=cuda)


def _peak(*, cuda: bool) -> int:
    """The most bytes that were in use."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    # `getrusage` has what the parent process held when it started this one.
    if STATUS.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())):
        return int(found.group(1)) * UNIT
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else UNIT)


def _machine(backbone: Backbone) -> str:
    """What is measured: a number of another machine is another number."""
    cuda = backbone.device.type == "cuda"
    device = torch.cuda.get_device_name(backbone.device) if cuda else platform.machine()
    return f"{platform.node()}, {device}, {torch.get_num_threads()} threads"


def _size(trial: StudyTrial) -> int:
    return int(trial.extra["batch_size"])


def _figure(found: Sequence[TrialResult], value: str, up: str) -> Section:
    lines = group_lines(mean_outcomes(found, value, lambda trial: (method_of(trial), _size(trial))))
    figure = line_plot(lines, title="mean over tasks and seeds", across="batch size", up=up, logarithmic=True)
    return Section(up.partition(",")[0].capitalize(), figure=figure, caption=f"{up} by batch size, a line each method")
