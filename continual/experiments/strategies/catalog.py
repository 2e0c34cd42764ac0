"""The strategies there are, by name. Adding one: a file with a dataclass that learns, and a line here."""

import difflib
import math
from collections.abc import Mapping, Sequence

from continual.experiments.strategies.ewc import ElasticWeightConsolidation
from continual.experiments.strategies.fine_tuning import IndependentFineTuning, SequentialFineTuning
from continual.experiments.strategies.joint import JointTraining
from continual.experiments.strategies.replay import ExperienceReplay
from continual.experiments.strategies.strategy import Strategy
from continual.reports.comparison import ISOLATED
from continual.settings import EWC_STRENGTH, FULL_FINE_TUNING_LR, REPLAY_ROWS
from tasks.errors import InputError

LARGEST_RATE = 10  # as of a stream's budget
ON_REQUEST = ("ewc_full",)  # learned where it is asked for by name


def build_strategies(
    *, full_at: float = FULL_FINE_TUNING_LR, ewc_strength: float = EWC_STRENGTH, replay_rows: int = REPLAY_ROWS
) -> Mapping[str, Strategy | None]:
    """Every strategy by its name, `isolated` as None.

    full_at: the learning rate of those that train every weight.
    Raises InputError for a rate that is no learning rate, and for a strength that is no number.
    """
    if not 0 < full_at <= LARGEST_RATE:
        raise InputError(
            f"a learning rate is above 0 and at most {LARGEST_RATE}; got {full_at}. Give another --full-rate"
        )
    if not 0 <= ewc_strength < math.inf:
        raise InputError(
            f"EWC's penalty counts 0 or more, and is finite; got {ewc_strength}. Give another --ewc-strength"
        )
    return {
        ISOLATED: None,
        "sequential_delta": SequentialFineTuning(),
        "ewc": ElasticWeightConsolidation(strength=ewc_strength),
        "replay": ExperienceReplay(rows=replay_rows),
        "sequential_full": SequentialFineTuning(full_learning_rate=full_at),
        "separate": IndependentFineTuning(full_learning_rate=full_at),
        "joint": JointTraining(full_learning_rate=full_at),
        "ewc_full": ElasticWeightConsolidation(strength=ewc_strength, full_learning_rate=full_at),
    }


STRATEGIES: tuple[str, ...] = tuple(build_strategies())
DEFAULT: tuple[str, ...] = tuple(name for name in STRATEGIES if name not in ON_REQUEST)


def check_strategy_names(names: Sequence[str]) -> None:
    """Raises InputError for a strategy that there is not, for one named twice, and for none at all."""
    for name in names:
        if name not in STRATEGIES:
            near = difflib.get_close_matches(name, STRATEGIES, n=1)
            hint = f"; did you mean {near[0]!r}" if near else ""
            raise InputError(f"strategy {name!r} is not known{hint}. Known: {', '.join(STRATEGIES)}")
    if not names or len(set(names)) < len(names):
        listed = ", ".join(names) or "nothing"
        raise InputError(f"strategies to compare are named once each; got {listed}. Known: {', '.join(STRATEGIES)}")
