"""One router from few tasks to thousands: accuracy, calibration, time and memory on nested sets of real tasks.

    python -m tests.benchmarks.routing_at_scale FOLDER [--sizes 64 256 257 1000] [--filled 10000]

The tasks are those of `docstring_modules`; FOLDER holds the installed packages and, once computed, the frozen features.
For each size: routing accuracy on the test rows of the first tasks, and that of a softmax regression
which is trained on the rows of these tasks all at once; the expected calibration error in 15 bins; the
share of test rows below the threshold of abstention; milliseconds per input of the router and of the backbone, batches
of 256 in turns; megabytes of the stored router and of its sums; seconds to add one task and build the router, and to
open a stored one. For `--filled`, mixtures of two tasks' classes are added up to that number, to measure time and
memory; the accuracy is then that of the real tasks among all.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone, load_backbone
from continual.features.pooling import encode
from continual.features.random_features import FrozenFeatures, frozen_features
from continual.features.tokens import tokenize
from continual.routing import Router, RoutingStatistics, compute_statistics
from continual.routing.held_out import TaskHeldOut
from continual.routing.moments import ClassMeans
from continual.routing.router import build_from_sums
from continual.routing.router_serialization import router_from_bytes, router_to_bytes
from continual.routing.router_sums import RouterSums
from tests.benchmarks.docstring_modules import ModuleTask, corpus_digest, install_packages, module_tasks
from tests.benchmarks.joint_classifier import LabelledRows, joint_accuracy
from tests.benchmarks.routing import calibration_error
from tests.benchmarks.run_log import quieten, say

SIZES, BATCH, REPEATS, CHUNK = (64, 256, 257, 1000), 256, 15, 4096
MAX_LENGTH = 64


@dataclass(frozen=True)
class Corpus:
    """Tasks with the random features of all their rows.

    Attributes:
        tasks: The tasks.
        features: Features [N, M] of all rows, in half precision, in the order of the tasks and of their splits.
    """

    tasks: Sequence[ModuleTask]
    features: np.ndarray[Any, Any]

    @cached_property
    def splits(self) -> list[tuple[slice, slice, slice]]:
        """The places of each task's train, validation and test rows."""
        places, start = [], 0
        for task in self.tasks:
            ends = np.cumsum([start, *map(len, task.splits)]).tolist()
            places.append((slice(*ends[:2]), slice(*ends[1:3]), slice(*ends[2:])))
            start = ends[-1]
        return places

    def rows(self, place: slice) -> Tensor:
        """Return features [N, M] of rows, in single precision."""
        return torch.from_numpy(self.features[place].astype(np.float32))

    def statistics(self, number: int) -> RoutingStatistics:
        """Return the statistics of a task, without those of a delta."""
        task, (train, validation, _) = self.tasks[number], self.splits[number]
        roles = sorted({role for _, role in task.rows})
        classes = torch.tensor([roles.index(role) for _, role in task.train])
        held_out = self.rows(validation)
        frozen = FrozenFeatures(held_out[:, :1], held_out)
        return compute_statistics(self.rows(train), classes, count=len(roles), held_out=frozen)

    def split_rows(self, count: int, split: int) -> tuple[np.ndarray[Any, Any], Tensor]:
        """Return the places [N] of one split's rows of the first `count` tasks, and their tasks [N]."""
        places = [np.arange(of[split].start, of[split].stop) for of in self.splits[:count]]
        sizes = torch.tensor([len(of_task) for of_task in places])
        return np.concatenate(places), torch.arange(count).repeat_interleave(sizes)


def load_corpus(folder: Path, backbone: Backbone) -> Corpus:
    """Return the corpus, with features that are kept in the folder."""
    install_packages(folder)
    tasks = module_tasks(folder)
    texts = [text for task in tasks for text, _ in task.rows]
    file = folder / f"features-{corpus_digest(tasks)[:16]}.npy"
    say(f"{len(tasks)} tasks, {len(texts)} rows")
    if not file.exists():
        parts = (
            frozen_features(backbone, _tokens(backbone, texts[i : i + CHUNK])) for i in range(0, len(texts), CHUNK)
        )
        first = next(parts).random_features
        draft, shape = file.with_suffix(".part"), (len(texts), first.shape[1])
        rows = np.lib.format.open_memmap(draft, mode="w+", dtype=np.float16, shape=shape)
        rows[: len(first)] = first.numpy()
        for number, part in enumerate(parts, start=1):
            rows[number * CHUNK : (number + 1) * CHUNK] = part.random_features.numpy()
            say(f"{number * CHUNK} rows encoded")
        rows.flush()
        draft.rename(file)
    return Corpus(tasks, np.load(file, mmap_mode="r"))


def _tokens(backbone: Backbone, texts: Sequence[str]) -> Any:
    return tokenize(backbone, texts, max_length=MAX_LENGTH)


def measure(corpus: Corpus, backbone: Backbone, sums: RouterSums, router: Router, count: int) -> dict[str, Any]:
    """Return accuracy, calibration, abstention, time and memory of a router of the first `count` tasks and others."""
    places, tasks = corpus.split_rows(count, 2)
    numbers = torch.tensor([router.tasks.index(corpus.tasks[number].name) for number in range(count)])
    truth, chosen, sure, familiar = numbers[tasks], [], [], []
    for i in range(0, len(places), BATCH):
        routed = router.route(_frozen(corpus, places[i : i + BATCH]))
        best = router.confidence(routed.log_p).max(dim=1)
        chosen.append(best.indices)
        sure.append(best.values.exp())
        familiar.append(routed.familiarity)
    right = (torch.cat(chosen) == truth).numpy()
    spread = np.linspace(0, len(places) - 1, BATCH).astype(int)
    texts = [text for number in range(count) for text, _ in corpus.tasks[number].test]
    tokens, inputs = _tokens(backbone, [texts[i] for i in spread]), _frozen(corpus, places[spread])
    pairs = [
        (_seconds(lambda: encode(backbone, tokens)), _seconds(lambda: router.route(inputs))) for _ in range(REPEATS)
    ]
    backbone_ms, router_ms = (1000 * median(pair[i] for pair in pairs) / BATCH for i in (0, 1))
    stored = router_to_bytes(router)
    assert stored is not None
    return {
        "tasks": len(router.tasks),
        "classes": len(router.task_of_class),
        "rows": len(places),
        "routing_accuracy": float(right.mean()),
        "calibration_error": calibration_error(torch.cat(sure).numpy(), right),
        "abstained": float((torch.cat(familiar) < router.threshold()).double().mean()),
        "backbone_ms": backbone_ms,
        "router_ms": router_ms,
        "router_to_backbone": router_ms / backbone_ms,
        "tokens_per_text": float(np.mean([len(ids) for ids in tokens.ids])),
        "router_mb": len(stored) / 1e6,
        "sums_mb": len(sums.to_bytes()) / 1e6,
        "open_seconds": _seconds(lambda: router_from_bytes(stored)),
    }


def of_joint_classifier(corpus: Corpus, count: int) -> float:
    """Return what `joint_accuracy` reaches on the first `count` tasks."""
    roles = [sorted({role for _, role in task.rows}) for task in corpus.tasks[:count]]
    numbers = {key: number for number, key in enumerate((i, role) for i, of in enumerate(roles) for role in of)}
    splits = []
    for split in range(3):
        places, _ = corpus.split_rows(count, split)
        rows = [(i, role) for i, task in enumerate(corpus.tasks[:count]) for _, role in task.splits[split]]
        splits.append(LabelledRows(places, torch.tensor([numbers[row] for row in rows])))
    return joint_accuracy(corpus.features, *splits, task_of_class=torch.tensor([task for task, _ in numbers]))


def _frozen(corpus: Corpus, places: np.ndarray[Any, Any]) -> FrozenFeatures:
    rows = corpus.rows(places)  # type: ignore[arg-type]
    return FrozenFeatures(rows[:, :1], rows)


def _fill(sums: RouterSums, tasks: int) -> None:
    """Add made tasks up to a number, whose class means lie between those of two tasks; they change no sum."""
    draw, names = np.random.default_rng(0), [*sums.totals.tasks]
    for made in range(tasks - len(names)):
        first, second = (sums.totals.tasks[names[i]] for i in draw.choice(len(names), 2, replace=False))
        count, name = min(len(first.means), len(second.means)), f"made {made}"
        means = (first.means[:count] + second.means[:count]) / 2
        sums.totals.tasks[name] = ClassMeans(means, torch.full((count,), 1 / count), first.counts[:count])
        sums.held_out[name] = TaskHeldOut(means[:1].half(), torch.zeros(1))
        sums.sources[name] = name


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--filled", type=int, default=0)
    parser.add_argument("--no-joint-classifier", action="store_true")
    arguments = parser.parse_args()
    quieten()
    torch.manual_seed(0)
    backbone = load_backbone("minilm", device="cpu")
    corpus = load_corpus(arguments.folder, backbone)
    sums, results, number = RouterSums(), [], 0
    for size in sorted(size for size in arguments.sizes if size <= len(corpus.tasks)):
        while number < size:
            part, name = corpus.statistics(number), corpus.tasks[number].name
            start = time.perf_counter()
            sums.add(name, name, part, num_tasks=size)
            added = time.perf_counter() - start
            number += 1
        start = time.perf_counter()
        router = build_from_sums(sums.totals, sums.held_out)
        built = time.perf_counter() - start
        results.append(measure(corpus, backbone, sums, router, size) | {"add_seconds": added + built})
        say(json.dumps(results[-1]))
    if not arguments.no_joint_classifier:
        for result in results:
            result["joint_classifier"] = of_joint_classifier(corpus, result["tasks"])
    if arguments.filled > number:
        _fill(sums, arguments.filled)
        start = time.perf_counter()
        router = build_from_sums(sums.totals, sums.held_out)
        built = time.perf_counter() - start
        results.append(measure(corpus, backbone, sums, router, number) | {"add_seconds": added + built, "real": number})
    print(json.dumps({"corpus": corpus_digest(corpus.tasks), "sizes": results}, indent=1))


if __name__ == "__main__":
    main()
