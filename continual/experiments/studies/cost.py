"""Study: the cost of training and inference in memory, seconds per step, throughput and latency.

Ding et al. (2022), "Delta Tuning" (arXiv:2203.06904), compare the memory of methods by batch size. On a GPU,
memory is the allocator's peak; elsewhere it is the peak resident memory of a fresh process, one for each trial, because
freed memory is not always returned to the system.
"""

import multiprocessing
import platform
import re
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
from continual.experiments.studies.trial_runner import TrialRunner, device_and_dtype
from continual.features.tokens import sorted_batches
from continual.kinds import ForwardContext, HeadStart
from continual.learning.prepared import PreparedTask, prepare_task
from continual.reports.html import Section
from continual.reports.html.study_result import Result
from continual.reports.plots import line_plot
from continual.training.training_run import TrainingResult
from continual.transfer.warm_start import from_scratch
from tasks import Method
from tasks.errors import InputError

METHODS = ("full", "lora", "adapter", "prefix", "bitfit", "probe")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KIBIBYTE = 1024  # bytes; the unit in which the system reports memory


@final
class Cost(Study):
    """Measures the cost of methods by batch size.

    Attributes:
        methods: The methods.
        batch_sizes: Rows per batch, in training and in inference.
        steps: The number of timed training steps, and of timed inference passes.
    """

    shows: ClassVar[str] = "peak memory, seconds of a step, examples per second, latency, by batch size"
    paper: ClassVar[str] = "Ding et al. 2022, arXiv:2203.06904, memory"

    methods: tuple[Method, ...] = Field(default=tuple(Method(name=name) for name in METHODS), min_length=1)
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 8, 32), min_length=1)
    steps: int = Field(default=10, ge=1)

    def trials(self, runner: TrialRunner) -> Iterable[StudyTrial]:
        """See `Study.trials`."""
        for size in self.batch_sizes:
            extra = {"batch_size": size, "steps": self.steps, "machine": _machine_label(runner.backbone)}
            yield from sweep_trials(runner, self.methods, rates=[1.0], epochs=1, extra=extra)

    def measure(self, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        """Measure one trial in a new process; see `Study.measure`."""
        backbone_arguments = (runner.backbone.name, *device_and_dtype(runner.backbone))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(measure_costs, *backbone_arguments, trial, torch.get_num_threads()).result()

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        columns = {"method": method_of, "batch size": _batch_size}
        values = ("memory_MiB", "added_MiB", "seconds_per_step", "examples_per_second", "latency_ms")
        memory = mean_outcomes(
            results, "memory_MiB", lambda trial: f"memory_MiB.{method_of(trial)}.{_batch_size(trial)}"
        )
        return Result(
            (
                Section("Cost of each method", TEXT, table=means_table(results, columns, values)),
                *(_figure(results, value, up) for value, up in FIGURES.items()),
                Section("Each task", "", table=means_table(results, {"task": task_of, **columns}, values)),
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


def measure_costs(name: str, device: str, dtype: str, trial: StudyTrial, threads: int) -> Mapping[str, float]:
    """Measure one trial in this process.

    Args:
        name: The backbone's name, hub id or folder.
        device: Its device.
        dtype: Its dtype.
        trial: The trial.
        threads: The number of PyTorch's threads.

    Returns:
        Peak memory of training and its increase over the loaded backbone in MiB, seconds per step, examples per second
        and the latency of a batch in milliseconds.
    """
    torch.set_num_threads(threads)
    size, steps = trial.extra["batch_size"], trial.extra["steps"]
    backbone = load_backbone(name, device=device, dtype=dtype)
    cuda = backbone.device.type == "cuda"
    # The first run pays for allocations and caches.
    _train_from_zero_head(backbone, _limit_rows(trial, size, batches=1))
    baseline = _reset_peak_memory(cuda=cuda)
    task, trained = _train_from_zero_head(backbone, _limit_rows(trial, size, batches=steps))
    peak = _peak_memory(cuda=cuda)
    rows = len(task.train.tokens)
    return {
        "memory_MiB": peak / KIBIBYTE**2,
        "added_MiB": (peak - baseline) / KIBIBYTE**2,
        "seconds_per_step": trained.seconds / -(-rows // size),
        "examples_per_second": rows / trained.seconds,
        "latency_ms": 1000 * _latency(task, trained.delta, size, passes=steps),
    }


def _train_from_zero_head(backbone: Backbone, trial: StudyTrial) -> tuple[PreparedTask, TrainingResult]:
    """Train from a head of zeros: a closed-form head needs every label, which so few rows may lack."""
    task = prepare_task(backbone, trial.selected_rows)
    start = from_scratch(HeadStart(task.kind.zero_head(task.backbone), torch.empty(0)))
    return task, task.training_run(start, seed=trial.seed).run()


def _limit_rows(trial: StudyTrial, size: int, *, batches: int) -> StudyTrial:
    """Return the trial with at most `batches` batches of train rows and one batch of validation rows."""
    data, budget = trial.data, trial.budget.model_copy(update={"batch_size": size})
    train = data.train.select(range(min(size * batches, len(data.train))))
    validation = data.validation.select(range(min(size, len(data.validation))))
    return replace(trial, data=replace(data, train=train, validation=validation), budget=budget)


def _latency(task: PreparedTask, delta: Delta, size: int, *, passes: int) -> float:
    """Return the median seconds of an inference pass over the batch of median length."""
    batches = list(sorted_batches(task.train.tokens.lengths, size))
    texts = task.data.train.select(batches[len(batches) // 2])
    batch = task.kind.prepare(task.backbone, texts, max_length=task.budget.max_length)
    context = ForwardContext(task.backbone, delta, batch)
    return statistics.median(_time_call(lambda: task.kind.outputs(context, delta.head)) for _ in range(passes))


def _time_call(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()  # ends with its outputs on the CPU, so that no GPU work is pending
    return time.perf_counter() - started_at


def _reset_peak_memory(*, cuda: bool) -> int:
    """Reset the recorded peak where the system allows it; return the bytes in use."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    elif RESET.exists():
        RESET.write_text("5")
    return _peak_memory(cuda=cuda)


def _peak_memory(*, cuda: bool) -> int:
    """Return the peak memory in bytes.

    Raises:
        InputError: The system does not report it.
    """
    if cuda:
        return torch.cuda.max_memory_allocated()
    # `getrusage` is not used on Linux: it includes what the parent process held when it started this one.
    if STATUS.exists() and (match := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())):
        return int(match.group(1)) * KIBIBYTE
    try:
        import resource
    except ImportError as error:
        raise InputError(
            f"study cost measures the peak memory of a process, which {platform.system()} does not report; run it with "
            "--device cuda, or on Linux or macOS"
        ) from error
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else KIBIBYTE)


def _machine_label(backbone: Backbone) -> str:
    """Return a label of the machine: measurements of different machines are different trials."""
    cuda = backbone.device.type == "cuda"
    device = torch.cuda.get_device_name(backbone.device) if cuda else platform.machine()
    return f"{platform.node()}, {device}, {torch.get_num_threads()} threads"


def _batch_size(trial: StudyTrial) -> int:
    return int(trial.extra["batch_size"])


def _figure(results: Sequence[TrialResult], value: str, up: str) -> Section:
    lines = group_lines(mean_outcomes(results, value, lambda trial: (method_of(trial), _batch_size(trial))))
    figure = line_plot(lines, title="mean over tasks and seeds", xlabel="batch size", ylabel=up, log_x=True)
    return Section(up.partition(",")[0].capitalize(), figure=figure, caption=f"{up} by batch size, a line each method")
