"""The catalogue of strategies; a new one is a file with a subclass of `Strategy`, and one line here.

Another package registers one with an entry point of the group `continual.strategies` that names an instance.
"""

from collections.abc import Sequence

from continual.experiments.strategies.ewc import ElasticWeightConsolidation
from continual.experiments.strategies.fine_tuning import IndependentFineTuning, SequentialFineTuning
from continual.experiments.strategies.joint import CumulativeTraining, JointTraining
from continual.experiments.strategies.replay import ExperienceReplay
from continual.experiments.strategies.strategy import Strategy
from continual.reports.comparison import ISOLATED
from continual.settings import FULL_FINE_TUNING_LR
from tasks.errors import InputError
from tasks.plugins import PluginRegistry

ON_REQUEST = ("ewc_full", "cumulative")  # run only when they are named


def _check(plugin: object) -> Strategy | str:
    return plugin if isinstance(plugin, Strategy) else "an instance of a subclass of Strategy"


STRATEGIES = PluginRegistry[Strategy](
    "strategy",
    "continual.strategies",
    check=_check,
    built_in={
        "sequential_delta": SequentialFineTuning(),
        "ewc": ElasticWeightConsolidation(),
        "replay": ExperienceReplay(),
        "sequential_full": SequentialFineTuning(full_learning_rate=FULL_FINE_TUNING_LR),
        "separate": IndependentFineTuning(full_learning_rate=FULL_FINE_TUNING_LR),
        "joint": JointTraining(full_learning_rate=FULL_FINE_TUNING_LR),
        "ewc_full": ElasticWeightConsolidation(full_learning_rate=FULL_FINE_TUNING_LR),
        "cumulative": CumulativeTraining(full_learning_rate=FULL_FINE_TUNING_LR),
    },
)
"""The strategies by name, with their default settings, without `isolated` (the stream's own deltas)."""


def select_strategies(names: Sequence[str] | None = None, **options: float) -> dict[str, Strategy | None]:
    """Return strategies by name, each with the options that it has; `isolated` maps to None.

    Args:
        names: The names; None for all except those in `ON_REQUEST`.
        options: Values by the names of `Strategy.options`, such as `ewc_strength`.

    Raises:
        InputError: A name is unknown or listed twice, there are no names, or an option's value is not allowed.
    """
    available = (ISOLATED, *STRATEGIES)
    names = [name for name in available if name not in ON_REQUEST] if names is None else names
    strategies = {name: None if name == ISOLATED else STRATEGIES.lookup(name, also_known=[ISOLATED]) for name in names}
    if not names or len(strategies) < len(names):
        listed = ", ".join(names) or "nothing"
        raise InputError(f"strategies to compare are named once each; got {listed}. Known: {', '.join(available)}")
    return {name: strategy and strategy.with_options(options) for name, strategy in strategies.items()}
