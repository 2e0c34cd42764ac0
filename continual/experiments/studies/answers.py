"""Study: the answers of a head, of a template, and of both together, by the number of rows.

    log p(y | x) = a log p_template(y | x) + b log p_head(y | x) + const,  a, b ≥ 0

The weights are fitted on the validation rows, of which there are as many as train rows at most. Genest and Zidek
(1986), "Combining Probability Distributions"; Schick and Schütze (2021), "Exploiting Cloze Questions for Few-Shot Text
Classification" (arXiv:2001.07676). Without rows there is no head, and the template answers alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from continual.deltas import Delta
from continual.experiments.studies.aggregation import make_trial, mean_outcomes, require_templates, without_template
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.features.discriminant import fit_pool_weights
from continual.kinds import ForwardContext, PreparedRows
from continual.kinds.classification import argmax_answers, label_indices
from continual.kinds.scoring import score_answers
from continual.learning.prepared import PreparedTask
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import bar_plot
from continual.reports.stream_measures import mean
from tasks import Method, TaskData
from tasks.rows import sample

ROWS = (0, 16, 500)
ANSWERS = ("head", "template", "both")


@final
class Answers(Study):
    """Compares what answers a task: a head on its vectors, the words of its template, and the two together.

    Attributes:
        rows: Numbers of train rows; 0 is zero-shot.
        epochs: Epochs of training; by default the task's own.
        method: The method, in place of the stream's.
    """

    shows: ClassVar[str] = "zero-shot, few and more rows, answered by a head, a template, and both"
    paper: ClassVar[str] = "Schick and Schütze 2021, arXiv:2001.07676"

    rows: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=ROWS, min_length=1)
    epochs: int | None = Field(default=None, ge=0)
    method: Method | None = None

    def trials(self, runner: TrialRunner) -> Iterator[StudyTrial]:
        """See `Study.trials`."""
        require_templates(runner.tasks)
        for data in runner.tasks:
            for seed in runner.seeds:
                for count in self.rows:
                    yield self._trial(data, seed, count)

    def _trial(self, data: TaskData, seed: int, count: int) -> StudyTrial:
        if count == 0:
            return make_trial(data, seed, self.method, epochs=0, extra={"answered with": 0})
        held_out = sample(data.validation, count, seed=f"{seed}/{data.spec.name}/held out")
        limited = replace(data, validation=held_out)
        return make_trial(limited, seed, self.method, epochs=self.epochs, rows=count, extra={"answered with": count})

    def measure(self, runner: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        """Return the test score of each of `ANSWERS`, and the template's share of the weights; null without a head."""
        task, template = _trained(runner, trial)
        if trial.extra["answered with"] == 0:
            score = _score(task, _log_probs(task, template, task.test))
            return {"head": None, "template": score, "both": score, "share": None}
        head_task, head = _trained(runner, replace(trial, data=without_template(trial.data)))
        parts = ((task, template), (head_task, head))
        validation, test = (
            torch.stack([_log_probs(part, delta, getattr(part, split)) for part, delta in parts])
            for split in ("validation", "test")
        )
        a, b = fit_pool_weights(validation, label_indices(head_task.data.validation.labels, task.data.labels))
        pooled = a * test[0] + b * test[1]
        return {
            "head": _score(task, test[1]),
            "template": _score(task, test[0]),
            "both": _score(task, pooled),
            "share": a / (a + b) if a + b else None,
        }

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        scores = {answer: _means(results, answer) for answer in ANSWERS}
        shares = _means(results, "share")
        keys = list(dict.fromkeys((result.trial.task, result.trial.extra["answered with"]) for result in results))
        counts = list(dict.fromkeys(count for _, count in keys))
        rows = [(*key, *(scores[answer].get(key) for answer in ANSWERS), shares.get(key)) for key in keys]
        means = [
            (count, *(mean(row[i] for row in rows if row[1] == count and row[i] is not None) for i in range(2, 6)))
            for count in counts
        ]
        gains = {f"both.{count}": both for count, _, _, both, _ in means if both is not None}
        return Result(
            (
                Section(
                    "Mean over the tasks",
                    TEXT,
                    table=Table(("rows", *COLUMNS), tuple(means)),
                    figure=bar_plot(
                        {str(count): dict(zip(ANSWERS, values, strict=False)) for count, *values in means},
                        title="mean over tasks and seeds",
                        ylabel="test score",
                    ),
                    caption="Mean test score of a head, a template and both, by the number of rows",
                ),
                Section("Each task", table=Table(("task", "rows", *COLUMNS), tuple(rows))),
            ),
            gains,
        )


COLUMNS = (*ANSWERS, "share of the template")
TEXT = (
    "Test scores. Without rows there is no head to answer with. Both: the weighted log-probabilities of the two, with "
    "the weights of least cross entropy on the validation rows; the share is the template's of the two weights."
)


def _trained(runner: TrialRunner, trial: StudyTrial) -> tuple[PreparedTask, Delta]:
    task, trained = runner.train(trial)
    return task, trained.delta


def _log_probs(task: PreparedTask, delta: Delta, rows: PreparedRows) -> Tensor:
    """The log-probabilities [N, C] of the labels for each row."""
    outputs = task.kind.outputs(ForwardContext(task.backbone, delta, rows), delta.head)
    return torch.log_softmax(outputs["logits"].double(), dim=1)


def _score(task: PreparedTask, log_probs: Tensor) -> float:
    answers = argmax_answers({"logits": log_probs}, task.data.labels)
    return score_answers(task.kind, task.data.spec.metric, task.test, answers)


def _means(results: Sequence[TrialResult], value: str) -> Mapping[tuple[str, int], float]:
    """Average an outcome over the seeds, by task and number of rows, where there is one."""
    present = [result for result in results if result.outcome[value] is not None]
    return mean_outcomes(present, value, lambda trial: (trial.task, trial.extra["answered with"]))
