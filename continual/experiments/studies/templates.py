"""What a template is worth: zero-shot, few-shot and with all rows, with the language model's words and with a head.

Le Scao and Rush (2021), "How Many Data Points is a Prompt Worth?" (arXiv:2103.08493); Gao et al. (2021), "Making
Pre-trained Language Models Better Few-shot Learners" (arXiv:2012.15723). Without a template nothing can be said
zero-shot: there is no head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, final

from pydantic import Field

from continual.errors import StudyError
from continual.experiments.studies.aggregation import RATES, Rates, best_rates, make_trial, mean_outcomes
from continual.experiments.studies.study import Study
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner, summarize
from continual.reports.html import Section, Table
from continual.reports.html.study_result import Result
from continual.reports.plots import bar_plot
from continual.reports.stream_measures import mean
from tasks import Method, TaskData

REGIMES = ("zero-shot", "few-shot", "all rows")


@final
class Templates(Study):
    """shots: rows of each label · few_epochs: epochs of few-shot training · method: in place of the stream's · rates:
    multiples of the learning rate, of which the best on validation rows counts.
    """

    shows: ClassVar[str] = "zero-shot, few-shot and all rows, with and without a template"
    paper: ClassVar[str] = "Le Scao and Rush 2021, arXiv:2103.08493"

    shots: int = Field(default=16, ge=1)
    few_epochs: int = Field(default=10, ge=1)
    method: Method | None = None
    rates: Rates = RATES

    def trials(self, bench: TrialRunner) -> Iterator[StudyTrial]:
        if bare := [data.spec.name for data in bench.tasks if data.spec.template is None]:
            raise StudyError(
                f"tasks without a template: {', '.join(bare)}. Give each one, as in "
                "template: {text: '{{ text }} It was {{ mask }}.', words: {bad: awful, good: great}}, or leave it out "
                "with --tasks; the backbone has to be a language model, such as roberta-base, gpt2 or t5-small"
            )
        for data in bench.tasks:
            for seed in bench.seeds:
                yield make_trial(data, seed, self.method, epochs=0, extra=_also("zero-shot", data))
                for rate in self.rates:
                    for own in (data, without_template(data)):
                        yield from self._regimes(own, seed, rate)

    def _regimes(self, data: TaskData, seed: int, rate: float) -> Iterator[StudyTrial]:
        few = _also("few-shot", data)
        yield make_trial(data, seed, self.method, rate=rate, epochs=self.few_epochs, shots=self.shots, extra=few)
        yield make_trial(data, seed, self.method, rate=rate, extra=_also("all rows", data))

    def measure(self, bench: TrialRunner, trial: StudyTrial) -> Mapping[str, Any]:
        return summarize(*bench.train(trial))

    def result(self, found: Sequence[TrialResult]) -> Result:
        scores = mean_outcomes(best_rates(found), "test", lambda trial: (trial.task, *_regime(trial)))
        tasks = list(dict.fromkeys(task for task, *_ in scores))
        each = [(task, regime, *_both(scores, [task], regime)) for task in tasks for regime in REGIMES]
        means = [(regime, *_both(scores, tasks, regime)) for regime in REGIMES]
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
                        up="test score",
                    ),
                    caption="Mean test score with a template and with a head, by how many rows there are",
                ),
                Section("Each task", table=Table(("task", "rows", *COLUMNS), tuple(each), FORMATS)),
            ),
            gains,
        )


COLUMNS = ("with template", "with head", "gain")
FORMATS = {"gain": "+.3f"}
TEXT = "Test scores. Gain: with the template less with a head. Zero-shot there is no head to answer with."


def without_template(data: TaskData) -> TaskData:
    """The task without its template, so that a head answers it."""
    return replace(data, spec=data.spec.model_copy(update={"template": None}))


def _also(regime: str, data: TaskData) -> dict[str, Any]:
    return {"regime": regime, "template": data.spec.template is not None}


def _regime(trial: StudyTrial) -> tuple[str, bool]:
    return trial.extra["regime"], trial.extra["template"]


def _both(
    scores: Mapping[tuple[str, str, bool], float], tasks: Sequence[str], regime: str
) -> tuple[float | None, float | None, float | None]:
    """The means with a template and with a head, and the difference."""
    template, head = (
        mean(scores[task, regime, kind] for task in tasks if (task, regime, kind) in scores) for kind in (True, False)
    )
    return template, head, None if template is None or head is None else template - head
