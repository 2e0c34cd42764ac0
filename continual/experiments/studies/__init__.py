"""Studies of the field, each from one line: `continual study NAME STREAM.yaml`.

Adding one: a file with its settings, trials, measurement and result, and a line here.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from continual.errors import StudyError
from continual.experiments.studies.ablation import Ablation
from continual.experiments.studies.combination import Combination
from continual.experiments.studies.convergence import Convergence
from continual.experiments.studies.cost import Cost
from continual.experiments.studies.generalisation import Generalisation
from continual.experiments.studies.size import Size
from continual.experiments.studies.study import Study, StudyRun, run_study
from continual.experiments.studies.templates import Templates
from continual.experiments.studies.transfer import Transfer
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.experiments.studies.trial_store import TrialStore
from continual.reports.html.study_result import Result

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
