"""Seconds until a new process answers its first routed line in a home of many tasks, beside loading the backbone alone.

    python -m tests.benchmarks.open_home FOLDER [--tasks 200] [--repeats 5]

The tasks are those of `docstring_modules`, learned without training steps on minilm in a home in FOLDER, once. Two
processes are timed in turn from their start to their end, imports included, on otherwise idle cores: one loads the
backbone, the other one opens the home too and routes one line. One JSON document of the medians.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from continual import Learner
from tests.benchmarks.docstring_modules import ModuleTask, install_packages, module_tasks
from tests.benchmarks.run_log import quieten, say
from tests.helpers.paths import ROOT

LOAD = "import continual; from continual.backbones.backbone import load_backbone; load_backbone('minilm', device='cpu')"
ANSWER = """import sys
from continual import Learner
with Learner.open("minilm", sys.argv[1], device="cpu") as learner:
    print(learner.predict(["Return the number of bytes that were read."]))"""


def learn(learner: Learner, task: ModuleTask) -> None:
    """Learn a task without training steps."""
    train, validation, test = (
        [{"text": text, "label": role} for text, role in rows] for rows in (task.train, task.validation, task.test)
    )
    learner.learn(
        _name(task),
        train,
        validation=validation,
        test=test,
        text="text",
        label="label",
        warm_start="scratch",
        budget={"epochs": 0, "max_length": 64},
    )


def _name(task: ModuleTask) -> str:
    return task.name.lstrip("_")  # a task's name begins with a letter or digit


def seconds(code: str, *arguments: str) -> float:
    """Return the seconds of a Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    quieten()
    folder = arguments.folder.resolve()
    install_packages(folder)
    home = folder / f"home-{arguments.tasks}"
    with Learner.open("minilm", home, device="cpu") as learner:
        learned = {str(row["task"]) for row in learner.registry.deltas()}
        for task in module_tasks(folder)[: arguments.tasks]:
            if _name(task) not in learned:
                learn(learner, task)
        say(f"{len(learner.registry.champions(learner.backbone.fingerprint))} tasks are learned")
    first = seconds(ANSWER, str(home))  # makes the router
    pairs = [(seconds(LOAD), seconds(ANSWER, str(home))) for _ in range(arguments.repeats)]
    load, answer = (median(times) for times in zip(*pairs, strict=True))
    ratio = median(answering / loading for loading, answering in pairs)
    print(json.dumps({"tasks": arguments.tasks, "load": load, "answer": answer, "ratio": ratio, "first": first}))


if __name__ == "__main__":
    main()
