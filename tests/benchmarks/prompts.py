"""Zero-shot scores of a generation task by the form of its prompts: plain, in the chat template, with an instruction.

    PYTHONPATH=. python -m tests.benchmarks.prompts TASK.yaml --backbone FOLDER [--instruction TEXT] [--rows 60]

The frozen backbone answers the first rows of the task's test split, without any delta; `copy` is the score of the texts
themselves. One JSON document of scores.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from continual.backbones.backbone import Backbone, load_backbone
from continual.kinds import ForwardContext, backbone_for, kind_of
from continual.kinds.scoring import score_answers
from continual.metrics import metric_score
from tasks import Budget, GenerationTarget, TaskData, load_task, read_task, text_parts

METRICS = ("bleu", "chrf", "exact_match")


def zero_shot(backbone: Backbone, data: TaskData, **keys: Any) -> dict[str, Any]:
    """Return the scores of the frozen backbone's answers where the spec has these keys."""
    kind = kind_of(backbone, TaskData(**{**vars(data), "spec": data.spec.model_copy(update=keys)}))
    writer, start = backbone_for(backbone, kind), time.perf_counter()
    assert data.spec.budget
    rows = kind.prepare(writer, data.test, max_length=data.spec.budget.max_length)
    answers = kind.answers(writer, kind.outputs(ForwardContext(writer, None, rows), None), rows)
    scores = {metric: round(score_answers(kind, metric, rows, answers), 4) for metric in METRICS}
    seconds = round(time.perf_counter() - start, 1)
    return {**scores, "seconds": seconds, "example": kind.example(writer, rows), "answer": answers[0].label}


def copy_scores(data: TaskData) -> dict[str, float]:
    """Return the scores of the texts themselves as answers."""
    truth = [target.references for target in data.test.targets if isinstance(target, GenerationTarget)]
    texts = [" ".join(text_parts(text)) for text in data.test.texts]
    return {metric: round(metric_score(metric, truth, texts, kind="generation"), 4) for metric in METRICS}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("task", type=Path)
    options.add_argument("--backbone", required=True)
    options.add_argument("--instruction", default="Correct the grammar of this sentence, and write nothing else:\n")
    options.add_argument("--rows", type=int, default=60)
    arguments = options.parse_args()
    stream = read_task(arguments.task)
    (spec,) = stream.resolved()
    spec = spec.model_copy(update={"budget": Budget(max_length=256, max_new_tokens=64)})
    data = load_task(spec, folder=stream.folder, seed=0)
    data = TaskData(**{**vars(data), "test": data.test.select(range(min(arguments.rows, len(data.test))))})
    backbone = load_backbone(arguments.backbone, device="cpu", dtype="float32")
    variants: dict[str, dict[str, Any]] = {
        "plain": {"chat_template": False},
        "template": {"chat_template": True},
        "plain_instruction": {"chat_template": False, "instruction": arguments.instruction},
        "template_instruction": {"chat_template": True, "instruction": arguments.instruction},
    }
    results: dict[str, Any] = {"copy": copy_scores(data)}
    for name, keys in variants.items():
        print(name, file=sys.stderr, flush=True)
        results[name] = zero_shot(backbone, data, **keys)
    print(json.dumps({"rows": len(data.test), "backbone": backbone.name, **results}, indent=2))


if __name__ == "__main__":
    main()
