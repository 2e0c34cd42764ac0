"""Results of streams whose processes, disks, databases, blobs and clocks fail.

    PYTHONPATH=.:tests python -m tests.benchmarks.faults [--kills 100] [--repeats 5] [--only kills,clocks] [--seed 0]

Each scenario breaks something while controllers learn a stream of the smoke stream's shape on a tiny random backbone.
After each: `verify` is clean or names the damage, every task is learned exactly once, and no score is lost: what one
controller comes to, in however many runs, is to the bit what an undisturbed one comes to. One JSON document of counts;
exit code 1 where anything was wrong. Needs PostgreSQL, and root for the disks (small tmpfs).
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.helpers.controller_processes import RESUME_LOG_MESSAGE, make_world
from tests.helpers.fault_injection import (
    Counts,
    FaultScenario,
    clock_skew,
    concurrent_controllers,
    corrupt_blobs,
    database_restarts,
    disk_full,
    kills,
    mlflow_outage,
    reference_run,
)
from tests.helpers.postgres_server import running


def scenarios(scenario: FaultScenario, count: int, repeats: int) -> dict[str, Callable[[], Counts | list[Counts]]]:
    """Return every scenario by name."""
    both = ("sqlite", "postgresql")
    sizes = [300 + 200 * number for number in range(repeats)]
    return {
        "kills": lambda: kills(scenario, "sqlite", count),
        "kills_postgresql": lambda: kills(scenario, "postgresql", -(-count // 4)),
        "controllers": lambda: [concurrent_controllers(scenario, kind, n) for kind in both for n in (2, 4)],
        "controllers_killed": lambda: [
            concurrent_controllers(scenario, kind, 4, killed=2) for kind in both for _ in range(repeats)
        ],
        "disk_full": lambda: disk_full(scenario, sizes),
        "database_restarted": lambda: database_restarts(scenario, 2 * repeats),
        "damage": lambda: corrupt_blobs(scenario),
        "clocks": lambda: clock_skew(scenario),
        "mlflow_from_the_start": lambda: mlflow_outage(scenario, middle=False),
        "mlflow_in_the_middle": lambda: mlflow_outage(scenario, middle=True),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--only", type=lambda names: names.split(","), default=[])
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    with TemporaryDirectory(prefix="continual-faults-") as folder, running() as server:
        world = make_world(Path(folder))
        expected, seconds = reference_run(world)
        setup = FaultScenario(world, server, random.Random(arguments.seed), expected, seconds)
        counts: Counts = {"undisturbed_seconds": round(seconds, 2)}
        for name, scenario in scenarios(setup, arguments.kills, arguments.repeats).items():
            if name in (arguments.only or [name]):
                print(name, file=sys.stderr, flush=True)
                counts[name] = scenario()
        resumed = world.folder / RESUME_LOG_MESSAGE
        counts["resumed_from_a_checkpoint"] = len(resumed.read_text().splitlines()) if resumed.exists() else 0
        counts["wrong"] = setup.wrong
        if setup.wrong:
            print((world.folder / "log").read_text(), file=sys.stderr)
    print(json.dumps(counts, indent=2))
    sys.exit(1 if setup.wrong else 0)


if __name__ == "__main__":
    main()
