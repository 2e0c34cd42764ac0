"""Accuracy of routing on a learned stream, and with strange inputs.

    continual run STREAM.yaml --home HOME
    python -m tests.benchmarks.routing STREAM.yaml --home HOME [--strange FILE] > routing.json

Predicts the stream's test rows by `Predictor` without abstention: routing accuracy, and that of a softmax
regression on the rows of all tasks at once; right task and right
label, and their ratio to the same with the task given; the expected calibration error of the confidence, in 15 bins;
the pairs of tasks confused. FILE holds rows `{"text": …}` that belong to none of the tasks: AUROC of the familiarity,
and the shares of them and of the stream's own rows that are abstained from at the default threshold.
"""

import argparse
import gzip
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from continual.features.random_features import frozen_features
from continual.features.tokens import tokenize
from continual.inference.opinions import DeltaQuery, query_delta
from continual.inference.predictor import Predictor
from continual.learner import Learner
from continual.routing import Opinion, choose_tasks
from continual.routing.stored_router import load_router
from tasks import TaskData, Text, load_stream, read_stream
from tests.benchmarks.joint_classifier import LabelledRows, joint_accuracy
from tests.benchmarks.run_log import quieten

BINS = 15


def of_stream(stream: Path, home: Path, strange_file: Path | None) -> dict[str, Any]:
    """Return the results on the test rows of a learned stream, and on rows of none of its tasks."""
    task_stream = read_stream(stream)
    loaded = [data for data in load_stream(task_stream) if data.spec.kind == "classification"]
    assert task_stream.backbone is not None
    with Learner.open(task_stream.backbone, home) as learner:
        names = [data.spec.name for data in loaded]
        champions = {
            true_tasks.task: true_tasks for true_tasks in learner.registry.champions(learner.backbone.fingerprint)
        }
        served = {name: champions[name] for name in names}
        loaded_router = load_router(learner.registry, learner.backbone, served)
        assert loaded_router is not None
        router = loaded_router.router
        true_tasks = [name for data in loaded for name in [data.spec.name] * len(data.test)]
        texts = [text for data in loaded for text in data.test.texts]
        labels = [label for data in loaded for label in data.test.labels]
        start = time.perf_counter()
        answers = learner.predict(texts, false_abstentions=0)
        seconds = time.perf_counter() - start
        named = [p for data in loaded for p in learner.predict(data.test.texts, data.spec.name)]
        oracle = np.mean([p.label == label for p, label in zip(named, labels, strict=True)])
        right = np.array([p.task == name for p, name in zip(answers, true_tasks, strict=True)])
        both = right & np.array([p.label == label for p, label in zip(answers, labels, strict=True)])
        sure = np.array([p.confidence for p in answers])
        pairs = Counter((name, p.task) for p, name in zip(answers, true_tasks, strict=True) if p.task != name)
        shared = _shared(loaded)
        apart = np.array([text not in shared for text in texts])
        document = {
            "tasks": len(router.tasks),
            "rows": len(texts),
            "routing_accuracy": float(right.mean()),
            "joint_classifier": _joint_classifier(learner, loaded),
            "routed_accuracy": float(both.mean()),
            "oracle_accuracy": float(oracle),
            "routed_to_oracle": float(both.mean() / oracle),
            "by_task": {name: float(right[np.array(true_tasks) == name].mean()) for name in names},
            "texts_in_several_tasks": int((~apart).sum()),
            "routing_accuracy_without_these": float(right[apart].mean()),
            "calibration_error": calibration_error(sure, right),
            "confused": [{"task": a, "routed_to": b, "rows": n} for (a, b), n in pairs.most_common(12)],
            "rows_per_second": len(texts) / seconds,
        }
        if strange_file is not None:
            open_file = gzip.open if strange_file.suffix == ".gz" else open
            with open_file(strange_file, "rt", encoding="utf-8") as lines:
                strange_texts = [json.loads(line)["text"] for line in lines]
            familiar, unfamiliar = (_familiarity(learner, rows) for rows in (texts, strange_texts))
            truth, familiarity = [1] * len(familiar) + [0] * len(unfamiliar), torch.cat([familiar, unfamiliar]).numpy()
            refused = [np.mean([p.abstained for p in learner.predict(rows)]) for rows in (texts, strange_texts)]
            document |= {
                "strange_rows": len(strange_texts),
                "auroc": float(roc_auc_score(truth, familiarity)),
                "refused_of_known": float(refused[0]),
                "refused_of_strange": float(refused[1]),
            }
    return document


def calibration_error(sure: "np.ndarray[Any, Any]", right: "np.ndarray[Any, Any]") -> float:
    """Compute Σ over bins of the bin's share of rows times |mean confidence − accuracy|; Guo et al. (2017)."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    return float(sum((bins == b).mean() * abs(sure[bins == b].mean() - right[bins == b].mean()) for b in set(bins)))


def _joint_classifier(learner: Learner, loaded: Sequence[TaskData]) -> float:
    """Return what `joint_accuracy` reaches on the stream's tasks, on the features that the router reads."""
    splits = [[getattr(data, name) for data in loaded] for name in ("train", "validation", "test")]
    texts = [text for split in splits for rows in split for text in rows.texts]
    longest = _longest(
        {champion.task: champion for champion in learner.registry.champions(learner.backbone.fingerprint)}
    )
    tokens = tokenize(learner.backbone, texts, max_length=longest)
    features = frozen_features(learner.backbone, tokens).random_features.numpy()
    labels = [[(i, target) for i, of_task in enumerate(split) for target in of_task.targets] for split in splits]
    numbers = {label: number for number, label in enumerate(sorted({label for split in labels for label in split}))}
    rows, start = [], 0
    for split_labels in labels:
        places = np.arange(start, start + len(split_labels))
        rows.append(LabelledRows(places, torch.tensor([numbers[label] for label in split_labels])))
        start += len(places)
    return joint_accuracy(features, *rows, task_of_class=torch.tensor([task for task, _ in numbers]))


def _shared(loaded: Sequence[TaskData]) -> set[Any]:
    """Return the texts that occur in more than one task, in any split."""
    occurrences: Counter[Any] = Counter()
    for data in loaded:
        occurrences.update({text for rows in (data.train, data.validation, data.test) for text in rows.texts})
    return {text for text, count in occurrences.items() if count > 1}


def _familiarity(learner: Learner, texts: Sequence[Text]) -> Tensor:
    """Compute the familiarity [N] of texts, as `Predictor` compares it with its threshold."""
    backbone, registry = learner.backbone, learner.registry
    champions = {champion.task: champion for champion in registry.champions(backbone.fingerprint)}
    loaded = load_router(registry, backbone, champions)
    assert loaded is not None
    router = loaded.router
    predictor = Predictor(backbone, registry)
    features = frozen_features(backbone, tokenize(backbone, texts, max_length=_longest(champions)))

    def ask(questions: Mapping[int, list[int]]) -> dict[int, Opinion[Any]]:
        result = {}
        for number, inputs in questions.items():
            name = router.tasks[number]
            length = int(champions[name].budget["max_length"])
            query = DeltaQuery([texts[i] for i in inputs], length, loaded.fit_statistics(name))
            result[number] = query_delta(backbone, predictor.load_delta(name), query)
        return result

    return router.familiarity(features) + choose_tasks(router, router.log_p(features), ask).fit


def _longest(champions: dict[str, Any]) -> int:
    return max(int(champion.budget["max_length"]) for champion in champions.values())


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--strange", type=Path)
    arguments = parser.parse_args()
    quieten()
    print(json.dumps(of_stream(arguments.stream, arguments.home, arguments.strange), indent=1))


if __name__ == "__main__":
    main()
