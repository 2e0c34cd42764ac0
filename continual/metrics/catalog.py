"""The metrics of each kind of task, and what they need besides targets and answers.

A built-in kind's metrics are imported when they are looked up: scikit-learn and sacrebleu take a second, which
answering inputs does without.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import cast

from continual.metrics.subsets import Metric
from tasks.plugins import PluginRegistry

# Keyword-only parameters that a metric may declare.
INPUTS = ("labels", "probabilities", "sources", "target_log_probabilities", "target_lengths")
SECONDARY_METRICS = {  # by kind: measured beside the score, lower is better
    "classification": ("ece",),
    "generation": ("perplexity",),
}
_BUILT_IN_KINDS = ("classification", "generation", "regression", "span")  # each a module beside this one


def required_inputs(metric: str, *, kind: str) -> tuple[str, ...]:
    """Return the names of `INPUTS` that a metric declares.

    >>> required_inputs("auroc", kind="classification"), required_inputs("accuracy", kind="classification")
    (('labels', 'probabilities'), ())
    """
    return tuple(name for name in _keywords(metrics_of(kind)[metric]) if name in INPUTS)


def label_obstacle(metric: str, labels: Sequence[str], *, kind: str) -> str | None:
    """Return why a metric is not defined for a task's labels, and what to do; None where it is."""
    if (kind, metric) != ("classification", "f1") or len(labels) == 2:
        return None
    return (
        f"metric 'f1' is the F1 score of the second of two labels, and the task has {len(labels)}; "
        "use macro_f1, the mean of the F1 scores of all labels"
    )


def _check_metric(plugin: object) -> Metric | str:
    expected = f"a function of targets and answers, with no keyword-only parameters but {', '.join(INPUTS)}"
    if not callable(plugin):
        return expected
    required = (name for name, must_be_given in _keywords(plugin).items() if must_be_given)
    return expected if set(required) - set(INPUTS) else cast(Metric, plugin)


@cache
def metrics_of(kind: str) -> PluginRegistry[Metric]:
    """Return the metrics of a kind, with those of the entry-point group `continual.metrics.KIND`.

    All but those of `SECONDARY_METRICS` can be a task's metric.
    """
    group = f"continual.metrics.{kind}"
    built_in: Mapping[str, Metric] = import_module(group).METRICS if kind in _BUILT_IN_KINDS else {}
    return PluginRegistry("metric", group, check=_check_metric, built_in=built_in)


def _keywords(metric: Metric) -> dict[str, bool]:
    """The keyword-only parameters of a metric, and whether each must be given."""
    parameters = inspect.signature(metric).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}
