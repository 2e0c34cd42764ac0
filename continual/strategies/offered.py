"""The strategies there are, by name. Adding one: a file with a dataclass that learns, and a line here."""

import difflib
import math
from collections.abc import Mapping, Sequence

from continual.comparison import ISOLATED
from continual.errors import InputError
from continual.settings import EWC_STRENGTH, FULL_RATE, REPLAY_ROWS
from continual.strategies.ewc import Ewc
from continual.strategies.joint import Joint
from continual.strategies.replay import Replay
from continual.strategies.separate import Separate
from continual.strategies.sequential import Sequential
from continual.strategies.strategy import Strategy

LARGEST_RATE = 10  # as of a stream's budget
EXTRA = ("ewc_full",)  # learned where it is asked for by name


def offered(
    *, full_at: float = FULL_RATE, ewc_strength: float = EWC_STRENGTH, replay_rows: int = REPLAY_ROWS
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
        "sequential_delta": Sequential(),
        "ewc": Ewc(strength=ewc_strength),
        "replay": Replay(rows=replay_rows),
        "sequential_full": Sequential(full_at=full_at),
        "separate": Separate(full_at=full_at),
        "joint": Joint(full_at=full_at),
        "ewc_full": Ewc(strength=ewc_strength, full_at=full_at),
    }


STRATEGIES: tuple[str, ...] = tuple(offered())
DEFAULT: tuple[str, ...] = tuple(name for name in STRATEGIES if name not in EXTRA)


def require_known(names: Sequence[str]) -> None:
    """Raises InputError for a strategy that there is not, for one named twice, and for none at all."""
    for name in names:
        if name not in STRATEGIES:
            near = difflib.get_close_matches(name, STRATEGIES, n=1)
            hint = f"; did you mean {near[0]!r}" if near else ""
            raise InputError(f"strategy {name!r} is not known{hint}. Known: {', '.join(STRATEGIES)}")
    if not names or len(set(names)) < len(names):
        listed = ", ".join(names) or "nothing"
        raise InputError(f"strategies to compare are named once each; got {listed}. Known: {', '.join(STRATEGIES)}")
