"""Study: a template against a head, zero-shot, few-shot and with all rows.

Le Scao and Rush (2021), "How Many Data Points is a Prompt Worth?" (arXiv:2103.08493); Gao et al. (2021), "Making
Pre-trained Language Models Better Few-shot Learners" (arXiv:2012.15723). With a template the language model's words
answer; without one there is no zero-shot answer, because there is no head.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, final

from pydantic import Field

from continual.experiments.studies.aggregation import (
    RATES,
    Rates,
    best_rates,
    make_trial,
    mean_outcomes,
    require_templates,
    without_template,
)
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import bar_plot
from continual.reports.stream_measures import mean
from tasks import Method, TaskData

REGIMES = ("zero-shot", "few-shot", "all rows")


@final
class Templates(Study):
    """Compares tasks with their template and with a head instead.

    Attributes:
        shots: Rows of each label in few-shot training.
        few_epochs: Epochs of few-shot training.
        method: The method, in place of the stream's.
        rates: Multiples of the learning rate; the best one on validation rows counts.
    """

    shows: ClassVar[str] = "zero-shot, few-shot and all rows, with and without a template"
    paper: ClassVar[str] = "Le Scao and Rush 2021, arXiv:2103.08493"

    shots: int = Field(default=16, ge=1)
    few_epochs: int = Field(default=10, ge=1)
    method: Method | None = None
    rates: Rates = RATES

    def trials(self, runner: TrialRunner) -> Iterator[StudyTrial]:
        """See `Study.trials`."""
        require_templates(runner.tasks)
        for data in runner.tasks:
            for seed in runner.seeds:
                yield make_trial(data, seed, self.method, epochs=0, extra=_extra("zero-shot", data))
                for rate in self.rates:
                    for variant in (data, without_template(data)):
                        yield from self._few_and_all_rows(variant, seed, rate)

    def _few_and_all_rows(self, data: TaskData, seed: int, rate: float) -> Iterator[StudyTrial]:
        few = _extra("few-shot", data)
        yield make_trial(data, seed, self.method, rate=rate, epochs=self.few_epochs, shots=self.shots, extra=few)
        yield make_trial(data, seed, self.method, rate=rate, extra=_extra("all rows", data))

    def result(self, results: Sequence[TrialResult]) -> Result:
        """See `Study.result`."""
        scores = mean_outcomes(best_rates(results), "test", lambda trial: (trial.task, *_regime(trial)))
        tasks = list(dict.fromkeys(task for task, *_ in scores))
        rows = [(task, regime, *_template_and_head(scores, [task], regime)) for task in tasks for regime in REGIMES]
        means = [(regime, *_template_and_head(scores, tasks, regime)) for regime in REGIMES]
        gains = {f"gain.{regime}": gain for regime, *_, gain in means if gain is not None}
        return Result(
            (
                Section(
                    "Mean over the tasks",
                    TEXT,
                    table=Table(("rows", *COLUMNS), tuple(means), FORMATS),
                    figure=bar_plot(
                        {regime: dict(zip(COLUMNS, both, strict=False)) for regime, *both, _ in means},
                        title="mean over tasks and seeds",
                        ylabel="test score",
                    ),
                    caption="Mean test score with a template and with a head, by how many rows there are",
                ),
                Section("Each task", table=Table(("task", "rows", *COLUMNS), tuple(rows), FORMATS)),
            ),
            gains,
        )


COLUMNS = ("with template", "with head", "gain")
FORMATS = {"gain": "+.3f"}
TEXT = "Test scores. Gain: with the template less with a head. Zero-shot there is no head to answer with."


def _extra(regime: str, data: TaskData) -> dict[str, Any]:
    return {"regime": regime, "template": data.spec.template is not None}


def _regime(trial: StudyTrial) -> tuple[str, bool]:
    return trial.extra["regime"], trial.extra["template"]


def _template_and_head(
    scores: Mapping[tuple[str, str, bool], float], tasks: Sequence[str], regime: str
) -> tuple[float | None, float | None, float | None]:
    """Return the mean scores with a template and with a head, and their difference."""
    template, head = (
        mean(scores[task, regime, has_template] for task in tasks if (task, regime, has_template) in scores)
        for has_template in (True, False)
    )
    return template, head, None if template is None or head is None else template - head
