"""Studies of the field, each from one line: `continual study NAME STREAM.yaml`.

Adding one: a file with its settings, trials, measurement and result, and a line here.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from continual.errors import StudyError
from continual.studies.ablation import Ablation
from continual.studies.bench import TrialRunner
from continual.studies.combination import Combination
from continual.studies.convergence import Convergence
from continual.studies.cost import Cost
from continual.studies.generalisation import Generalisation
from continual.studies.ledger import TrialStore
from continual.studies.size import Size
from continual.studies.study import Result, Study, StudyRun, run_study
from continual.studies.templates import Templates
from continual.studies.transfer import Transfer
from continual.studies.trial import StudyTrial, TrialResult

__all__ = [
    "STUDIES",
    "Result",
    "Study",
    "StudyRun",
    "StudyTrial",
    "TrialResult",
    "TrialRunner",
    "TrialStore",
    "run_study",
    "study_of",
]

STUDIES: Mapping[str, type[Study]] = {
    "size": Size,
    "convergence": Convergence,
    "cost": Cost,
    "generalisation": Generalisation,
    "transfer": Transfer,
    "ablation": Ablation,
    "combination": Combination,
    "templates": Templates,
}


def study_of(name: str, settings: Mapping[str, Any]) -> Study:
    """The study of a name with these settings.

    Raises StudyError for a study or setting that does not exist, or a value that is not allowed.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise StudyError(f"study {name!r} is not known{hint}. Known: {', '.join(STUDIES)}")
    kind = STUDIES[name]
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise StudyError(f"study {name!r}: {problems}. Settings: {', '.join(kind.model_fields) or 'none'}") from None
