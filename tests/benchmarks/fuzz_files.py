"""Robustness of the commands under hostile and damaged files.

    python -m tests.benchmarks.fuzz_files [--minutes 2] [--count N] [--seed 0] [--only streams,blobs] > fuzzed.json

Kinds, in turn (`tests.benchmarks.hostile_files`): stream and task files, data files, folders of adapters, dumps,
SQLite files and blobs. Each case starts from a copy of a sound home and runs the public commands in this process.
Faults are: an exception that is no `ContinualError`, or an exit code that is none of 0, 1 and 2; a command that takes
longer than a minute, or more than 512 MiB; and a delta that was not damaged and cannot be exported afterwards, or a
finding of `verify` in a home to which nothing was done but a refused command. One JSON document is printed, with the
first example of each fault; the exit code is 1 for any fault. A case depends on the seed and its number alone:
`--first N --count 1` repeats one.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import yaml

from continual.cli import main as command_line
from tests.benchmarks.hostile_files import KINDS, TASKS, World
from tests.benchmarks.run_log import say
from tests.helpers.tiny_tasks import save_backbone, tiny_backbone, write_task

LIMIT = 60  # seconds of one command
MEMORY = 512  # MiB by which one command may raise the peak
ADDRESS_SPACE = 16 << 30  # bytes: beyond, Python raises MemoryError before the machine suffers
SHOWN = 1500  # characters of an error
METHOD, BUDGET = {"name": "lora", "rank": 2}, {"epochs": 0, "batch_size": 8, "learning_rate": 1e-2, "max_length": 16}


class Hang(BaseException):
    """A command took longer than `LIMIT`; nothing catches it."""


@dataclass
class Outcome:
    """The results of all cases.

    Attributes:
        cases: Cases, by kind.
        codes: Commands by name and exit code.
        slowest: The slowest command: its seconds, and its case.
        faults: The first example of every fault, and its number.
    """

    cases: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    faults: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add_fault(self, fault: str, **example: Any) -> None:
        """Count a fault, and keep its first example."""
        known = self.faults.setdefault(fault, {"times": 0, **example})
        known["times"] += 1


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Attributes:
        code: Its exit code; None if it raised an exception.
        error: The last line of its traceback and the line of code, or what else was wrong; empty if nothing was.
        output: What it wrote, and the traceback.
        seconds: How long it took.
    """

    code: int | None
    error: str
    output: str
    seconds: float


def finished(words: Sequence[str], home: Path) -> Finished:
    """Run a command in this process."""
    words = words if "--home" in words else (*words, "--home", str(home))
    start, peak = time.monotonic(), peak_memory()
    code, error, output = None, "", io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        patch.object(sys, "argv", ["continual", *words]),
        limited(),
    ):
        try:
            command_line()
        except SystemExit as stopped:
            code = 0 if stopped.code is None else int(stopped.code)
        except BaseException as raised:
            traceback.print_exc(file=output)
            place = traceback.extract_tb(raised.__traceback__)[-1]
            error = f"{type(raised).__name__} at {Path(place.filename).name}:{place.lineno} in {place.name}"
    if code not in (0, 1, 2, None):
        error = f"exit code {code}"
    elif not error and "Traceback (most recent call last)" in output.getvalue():
        error = "a traceback on standard error"
    elif not error and (grown := peak_memory() - peak) > MEMORY:
        error = f"more than {MEMORY} MiB ({grown:.0f})"
    return Finished(code, error, output.getvalue(), time.monotonic() - start)


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def limited() -> Iterator[None]:
    """Raise Hang in the block after `LIMIT` seconds."""

    def hang(number: int, frame: object) -> None:
        raise Hang(f"it takes longer than {LIMIT} s")

    previous = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def make_world(folder: Path) -> World:
    """Learn two tasks, export a delta and dump the home."""
    backbone = save_backbone(tiny_backbone("bert"), folder / "backbone")
    tasks = [write_task(folder, task, train=24, validation=8, test=8) for task in TASKS]
    for task in tasks:
        files = task["source"]["data_files"]
        files.update({split: str(folder / file) for split, file in files.items()})
    stream = {"name": "small", "backbone": str(backbone), "method": METHOD, "budget": BUDGET, "tasks": tasks}
    world = World(folder, stream)
    (folder / "stream.yaml").write_text(yaml.safe_dump(stream))
    (folder / "texts").write_text("cat purr meow\nlovely bright superb\n")
    write_other_forms(folder / "mood")
    for words in (
        ("run", str(folder / "stream.yaml"), "--device", "cpu"),
        ("export", "mood@1", str(folder / "adapter"), "--device", "cpu"),
        ("db", "dump", str(folder / "dump.zip")),
        ("verify", "--device", "cpu"),
    ):
        done = finished(words, world.home)
        assert done.code == 0, done.output
    return world


def write_other_forms(folder: Path) -> None:
    """Write each file of JSON lines as CSV and Parquet as well."""
    import pandas

    for file in folder.glob("*.jsonl"):
        rows = pandas.read_json(file, lines=True)
        rows.to_csv(file.with_suffix(".csv"), index=False)
        rows.to_parquet(file.with_suffix(".parquet"))


def run_case(world: World, kind: str, number: int, seed: int, outcome: Outcome) -> None:
    """Make a case in a folder of its own, run its commands, and look for what was lost."""
    draw = Random(f"{seed}/{number}")
    with TemporaryDirectory(prefix="continual-case-") as name:
        folder = Path(name)
        shutil.copytree(world.home, folder / "home")
        case = KINDS[kind](world, folder, draw)
        outcome.cases[kind] += 1
        check = ("verify", "--quick")
        lost = [("export", delta, str(folder / f"intact {delta}"), "--device", "cpu") for delta in case.intact]
        for words in (*case.commands, *lost, *([check] if case.sound else [])):
            done = finished(words, folder / "home")
            must_succeed = words in lost or (case.sound and words == check)
            note(outcome, done, f"{kind} {number}: {case.what}", words, must_succeed=must_succeed)


def note(outcome: Outcome, done: Finished, case: str, words: Sequence[str], *, must_succeed: bool) -> None:
    """Count a command and its faults."""
    command = " ".join(word for word in words[:2] if word.isalpha())
    outcome.codes[f"{command} {done.code}"] += 1
    outcome.slowest = max(outcome.slowest, (round(done.seconds, 2), f"{case}: {' '.join(words)}"))
    error = done.error or ("lost: what was not damaged cannot be read" if must_succeed and done.code else "")
    if error:
        say(f"{case}: {command}: {error}")
        outcome.add_fault(
            f"{case.split()[0]}, {command}: {error}", case=case, words=[*words], output=done.output[-SHOWN:]
        )


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--count", type=int, default=10**9, help="cases at most")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=lambda names: names.split(","), default=[*KINDS])
    given = parser.parse_args()
    for variable in ("CONTINUAL_REGISTRY_URL", "CONTINUAL_BLOBS_URL", "MLFLOW_TRACKING_URI"):
        os.environ.pop(variable, None)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.getrlimit(resource.RLIMIT_AS)[1]))
    outcome, until = Outcome(), time.monotonic() + 60 * given.minutes
    with (
        TemporaryDirectory(prefix="continual-fuzzed-") as folder,
        patch("datasets.config.HF_DATASETS_CACHE", f"{folder}/cache"),
    ):
        world = make_world(Path(folder))
        number = given.first
        while time.monotonic() < until and number < given.first + given.count:
            run_case(world, given.only[number % len(given.only)], number, given.seed, outcome)
            number += 1
    summary = {
        "cases": sum(outcome.cases.values()),
        "commands": sum(outcome.codes.values()),
        "by_kind": outcome.cases,
        "codes": dict(sorted(outcome.codes.items())),
        "slowest": outcome.slowest,
        "peak_MiB": round(peak_memory()),
        "faults": sum(fault["times"] for fault in outcome.faults.values()),
    }
    print(json.dumps({"given": vars(given), "summary": summary, "faults": outcome.faults}, indent=1))
    sys.exit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
