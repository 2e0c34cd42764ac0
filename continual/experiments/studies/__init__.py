"""The catalogue of studies; a new one is a file with a subclass of `Study`, and one line here.

Another package registers one with an entry point of the group `continual.studies` that names its class.
"""

from collections.abc import Mapping
from inspect import isabstract
from typing import Any, cast

from continual.errors import StudyError
from continual.experiments.studies.ablation import Ablation
from continual.experiments.studies.answers import Answers
from continual.experiments.studies.combination import Combination
from continual.experiments.studies.composition import Composition
from continual.experiments.studies.convergence import Convergence
from continual.experiments.studies.cost import Cost
from continual.experiments.studies.design_comparison import DesignComparison
from continual.experiments.studies.generalisation import Generalisation
from continual.experiments.studies.heads import Heads
from continual.experiments.studies.placement import Placement
from continual.experiments.studies.ranking import Ranking
from continual.experiments.studies.scale import Scale
from continual.experiments.studies.size import Size
from continual.experiments.studies.study import Study, StudyRun, run_study
from continual.experiments.studies.templates import Templates
from continual.experiments.studies.transfer import Transfer
from continual.experiments.studies.trial import StudyTrial, TrialResult
from continual.experiments.studies.trial_runner import TrialRunner
from continual.experiments.studies.trial_store import TrialStore
from continual.reports.html.study_result import Result
from tasks.plugins import PluginRegistry
from tasks.strict_model import validate_settings

__all__ = [
    "STUDIES",
    "DesignComparison",
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


def _check(plugin: object) -> type[Study] | str:
    fits = isinstance(plugin, type) and issubclass(plugin, Study) and not isabstract(plugin)
    return cast(type[Study], plugin) if fits else "a subclass of continual.experiments.studies.Study"


STUDIES = PluginRegistry[type[Study]](
    "study",
    "continual.studies",
    check=_check,
    error=StudyError,
    built_in={
        "size": Size,
        "convergence": Convergence,
        "cost": Cost,
        "generalisation": Generalisation,
        "transfer": Transfer,
        "ablation": Ablation,
        "combination": Combination,
        "templates": Templates,
        "placement": Placement,
        "composition": Composition,
        "heads": Heads,
        "ranking": Ranking,
        "scale": Scale,
        "answers": Answers,
    },
)
"""The studies by name."""


def study_of(name: str, settings: Mapping[str, Any]) -> Study:
    """Build the study of a name from its settings.

    Raises:
        StudyError: The study or a setting does not exist, or a value is not allowed.
    """
    return validate_settings(STUDIES.lookup(name), settings, of=f"study {name!r}", error=StudyError)
