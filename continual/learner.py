"""The `Learner`: the library's main entry point from Python."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from continual.backbones.backbone import Backbone, load_backbone
from continual.backbones.devices import DeviceSpec
from continual.callbacks import NO_CALLBACKS, RunCallbacks
from continual.exchange import ChampionExports, export_champions, export_delta, import_delta
from continual.experiments.strategies import Strategy, compare_strategies, select_strategies
from continual.inference.input_rows import parse_rows, predict_rows
from continual.inference.predictions import Predictions
from continual.inference.predictor import Predictor
from continual.reports.report import stream_report
from continual.reports.tabular import ComparisonReport, StreamReport
from continual.settings import DEFAULT_HOME, FALSE_ABSTENTION_RATE, Locations, resolve_locations
from continual.streams.arrivals import watch
from continual.streams.controller import RETRIES, run_stream
from continual.streams.engine import LOCAL_ENGINE, Engine
from continual.streams.migration.migrate import run_migration
from continual.streams.migration.outcome import MigrationOutcome
from continual.streams.migration.plan import plan_migration
from continual.streams.position_learner import learn_task
from continual.streams.preflight import load_and_check, require_trainable
from continual.tracking import background_sender
from registry import Champion, Registry, redact
from tasks import Stream, TaskSpec, task_from_rows
from tasks.errors import InputError

_PredictorSettings = tuple[tuple[Champion, ...], str, float]  # champions, router, false abstentions


@final
class Learner:
    """A frozen backbone, the registry of tasks and deltas learned on it, and optionally MLflow.

    Attributes:
        backbone: The frozen backbone.
        registry: The registry.
        locations: Where MLflow is; None leaves MLflow alone.

    >>> from continual import Learner                                                            # doctest: +SKIP
    >>> with Learner.open(backbone="minilm", registry="my-home") as learner:                     # doctest: +SKIP
    ...     learner.run(read_stream("stream.yaml"))
    ...     learner.predict(["my card is lost"])[0].label
    'lost_card'
    """

    def __init__(self, backbone: Backbone, registry: Registry, locations: Locations | None = None) -> None:
        """Combine a loaded backbone and an open registry; without `locations` nothing is sent to MLflow."""
        self.backbone = backbone
        self.registry = registry
        self.locations = locations
        self._predictor: tuple[_PredictorSettings, Predictor] | None = None  # of the last call of `predict`

    @classmethod
    def open(
        cls,
        backbone: str = "minilm",
        registry: Registry | Path | str = DEFAULT_HOME,
        *,
        device: DeviceSpec = "auto",
        dtype: str = "auto",
        bits: int | None = None,
    ) -> Self:
        """Load a backbone, and open a registry or the home folder that holds one.

        Tasks learned in a home folder are sent to its MLflow too; with a registry object, MLflow is left alone.

        Args:
            backbone: The name, hub id or folder of the backbone.
            registry: An open registry, or the home folder.
            device: As in `load_backbone`.
            dtype: As in `load_backbone`.
            bits: As in `load_backbone`.

        Raises:
            BackboneError: The backbone cannot be loaded.
            InputError: `registry` is a URL.
            RegistryError: The registry cannot be opened.
            RegistryMissing: The home holds blobs, and no registry that names them.
            SchemaError: The registry's schema is not the expected one.
        """
        if "://" in str(registry):
            raise InputError(f"registry {registry!r} is a URL; give a folder, or Registry.open(url, blobs)")
        loaded = load_backbone(backbone, device=device, dtype=dtype, bits=bits)
        if isinstance(registry, Registry):
            return cls(loaded, registry)
        locations = resolve_locations(registry)
        places = (locations.registry, locations.blobs)
        return cls(loaded, Registry.open_existing(*places) or Registry.open(*places), locations)

    def close(self) -> None:
        """Close the registry."""
        self.registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        stream: Stream,
        *,
        callbacks: RunCallbacks = NO_CALLBACKS,
        retries: int = RETRIES,
        engine: Engine = LOCAL_ENGINE,
    ) -> dict[str, str]:
        """Learn the tasks of a stream that are not learned yet; return the errors of failed tasks by name.

        Args:
            stream: The tasks in order of arrival.
            callbacks: Called as learning goes on.
            retries: Further attempts at a task that failed, made after the other tasks.
            engine: Where the tasks are learned: in this process or, with `resolve_engine("ray", workers=8)`, elsewhere.

        Raises:
            InputError: The stream cannot be learned as it is; nothing has been learned.
        """
        with self._mlflow_sender():
            return run_stream(self.backbone, self.registry, stream, callbacks=callbacks, retries=retries, engine=engine)

    def watch(
        self, folder: Path | str | None = None, *, idle: float | None = None, callbacks: RunCallbacks = NO_CALLBACKS
    ) -> dict[int, str | None]:
        """Learn tasks submitted to the registry (`Registry.submit`) as they arrive, by priority.

        Args:
            folder: Task files in this folder are submitted too.
            idle: Return when there has been nothing to learn for this many seconds; None never returns.
            callbacks: Called as learning goes on.

        Returns:
            By arrival number, the error of every arrival that ended here; None where it was learned.

        Raises:
            InputError: `folder` is not a folder, or nothing can be trained on the backbone.
        """
        with self._mlflow_sender():
            return watch(
                self.backbone,
                self.registry,
                folder=None if folder is None else Path(folder),
                idle=idle,
                callbacks=callbacks,
            )

    def compare(
        self,
        stream: Stream,
        strategies: Mapping[str, Strategy | None] | None = None,
        *,
        callbacks: RunCallbacks = NO_CALLBACKS,
    ) -> ComparisonReport:
        """Learn a stream by other strategies too, where that is not done yet, and return the comparison.

        Args:
            stream: The tasks in order of arrival.
            strategies: Strategies by name, from `continual.experiments.strategies.catalog`; None takes all but
                `ewc_full` and `cumulative`.
            callbacks: Called as learning goes on.

        Returns:
            The comparison, as JSON with views of it; strategies that failed are listed under `failed`.

        Raises:
            InputError: The stream cannot be compared; nothing has been learned.
        """
        chosen = select_strategies() if strategies is None else strategies
        with self._mlflow_sender():
            return ComparisonReport(
                compare_strategies(self.backbone, self.registry, stream, chosen, callbacks=callbacks)
            )

    def learn(
        self,
        task: TaskSpec | Stream | str,
        data: Any = None,
        *,
        folder: Path | str = ".",
        callbacks: RunCallbacks = NO_CALLBACKS,
        **settings: Any,
    ) -> str:
        """Learn one task, as a new version if it was learned before, and return its delta's name.

        >>> learner.learn("cards", frame, text="message", label="topic", shots=16)       # doctest: +SKIP
        'cards@1'

        Args:
            task: A specification, or what `read_task` returns; or the name of a task whose rows follow.
            data: The train rows of a task given by its name: a pandas DataFrame, a `datasets.Dataset` or
                `DatasetDict`, a list of mappings, or the path of a file, as for `task_from_rows`.
            folder: The folder that relative data files of a specification or of `data` start from.
            callbacks: Called as learning goes on.
            settings: Of a task given by its name, the further arguments of `task_from_rows`: `validation`, `test` and
                the fields of `TaskSpec`, such as `text` and `label`.

        Returns:
            The name of the new delta, such as `sst2@1`.

        Raises:
            InputError: The task cannot be learned as it is; nothing has been learned.
            TrainingError: Training failed.
        """
        require_trainable(self.backbone)
        if isinstance(task, str):
            task = task_from_rows(task, data, **settings)
        elif data is not None or settings:
            raise InputError(
                f"task {task.name!r} comes with its rows and settings; leave out {', '.join(settings) or 'data'}, or "
                "give the name of the task in its place"
            )
        single = task if isinstance(task, Stream) else Stream(name=task.name, tasks=(task,), folder=Path(folder))
        (data,) = load_and_check(self.backbone, self.registry, single, alone=True)
        with self._mlflow_sender():
            delta = learn_task(self.backbone, self.registry, data, single, callbacks=callbacks)
            callbacks.on_learned(data.spec.name, delta)
        return delta

    def migrate(
        self,
        origin: str | None = None,
        tasks: Collection[str] | None = None,
        *,
        name: str | None = None,
        callbacks: RunCallbacks = NO_CALLBACKS,
    ) -> list[MigrationOutcome]:
        """Learn the tasks served on another backbone again on this one; return the outcome of each.

        Args:
            origin: The name or fingerprint of the other backbone; needed where there are several.
            tasks: The names of the tasks to migrate; None migrates all.
            name: The name of the migration's stream, to migrate a later version of a task too; see `plan_migration`.
            callbacks: Called as learning goes on.

        Raises:
            InputError: The tasks cannot be migrated; nothing has been learned.
        """
        migration = plan_migration(self.backbone, self.registry, origin=origin, tasks=tasks, name=name)
        with self._mlflow_sender():
            return run_migration(migration, callbacks)

    def export(self, delta: str, folder: Path | str, *, form: str = "peft", rank: int | None = None) -> tuple[str, ...]:
        """Write a delta for PEFT or a serving engine, or merged into a full model; return the names of the files.

        Args:
            delta: The name of the delta.
            folder: The folder to write.
            form: `peft`; `transformers` for a model with the delta merged into its weights; or `vllm`, `sglang` or
                `lorax` for LoRA as this engine loads it.
            rank: Largest rank of LoRA for an engine; by default that of the delta, at most 64 where it is approximated.

        Raises:
            NotFound: The delta is not registered.
            ExchangeError: The format cannot express the delta's method.
        """
        return export_delta(self.backbone, self.registry, delta, folder=Path(folder), file_format=form, rank=rank).files

    def export_champions(self, folder: Path | str, *, form: str = "peft", rank: int | None = None) -> ChampionExports:
        """Write every champion on this backbone to a folder of its name; return them, and why others were refused.

        Args:
            folder: a new or empty folder.
            form: As for `export`.
            rank: As for `export`.

        Raises:
            ExchangeError: None of them can be exported.
        """
        return export_champions(self.backbone, self.registry, Path(folder), file_format=form, rank=rank)

    def import_peft(self, folder: Path | str, task: str, *, rows: Stream | None = None) -> str:
        """Register an adapter saved by PEFT as the next version of a task's delta; return its name.

        Args:
            folder: The folder that PEFT wrote.
            task: The name of a learned task.
            rows: What `read_task` returns for the task, whose rows the delta is scored on; None leaves it unscored.

        Raises:
            NotFound: The task is not registered.
            ExchangeError: The folder does not fit the backbone or the task.
        """
        if rows is not None and rows.name != task:
            raise InputError(f"the rows are of task {rows.name!r}, not of {task!r}; give the file of the task itself")
        data = None if rows is None else load_and_check(self.backbone, self.registry, rows, alone=True)[0]
        with self._mlflow_sender():
            return import_delta(self.backbone, self.registry, Path(folder), task=task, data=data)

    def _mlflow_sender(self) -> AbstractContextManager[None]:
        return background_sender(self.registry, self.locations) if self.locations else nullcontext()

    def predict(
        self,
        texts: Any,
        task: str | Sequence[str | None] | None = None,
        *,
        among: Sequence[str] | None = None,
        router: str = "auto",
        false_abstentions: float = FALSE_ABSTENTION_RATE,
        at_least: float | None = None,
    ) -> Predictions:
        """Predict one answer per text, in order; without `task` the router chooses the task or abstains.

        Args:
            texts: One text; or N texts, pairs of texts, or objects such as `{"text": "my card", "task": "banking",
                "id": 7}`, whose further columns come back in `Prediction.columns`; or a pandas frame of such columns.
            task: The task of all texts, or of each, that name none themselves; None lets the router choose.
            among: The tasks among which the router chooses; by default all that are learned.
            router: The name of the router, as in `Predictor`.
            false_abstentions: The share of known tasks' inputs that may be refused, as in `Predictor`.
            at_least: Also list every task of at least this probability, with its answer.

        Returns:
            N predictions, as a list with views of it.

        Raises:
            InputLineError: A row is no input.
            NotFound: A task has no delta on this backbone.
            InputError: The router cannot choose a task of `among`.
        """
        predictor = self._current_predictor(router, false_abstentions)
        return Predictions(predict_rows(predictor, parse_rows(texts), task=task, among=among, at_least=at_least))

    def _current_predictor(self, router: str, false_abstentions: float) -> Predictor:
        """Return the predictor of the last call where champions and settings are the same, else a new one."""
        settings = (self.registry.champions(self.backbone.fingerprint), router, false_abstentions)
        previous_settings, previous = self._predictor or (None, None)
        if previous and previous_settings == settings and previous.is_complete:
            return previous
        predictor = Predictor(
            self.backbone,
            self.registry,
            serving=settings[0],
            router=router,
            false_abstentions=false_abstentions,
            delta_cache=previous.delta_cache if previous else None,
        )
        self._predictor = settings, predictor
        return predictor

    def report(self, stream: str) -> StreamReport:
        """Return the score matrices and measures of a stream, oracle and routed, as JSON with views of it.

        Raises:
            NotFound: The stream was never started.
        """
        return StreamReport(stream_report(self.registry, stream))

    def _repr_html_(self) -> str:
        """Return the backbone, the registry and the serving deltas as HTML, as Jupyter shows them."""
        from continual.reports.html.notebook import learner_fragment

        champions = {champion.delta for champion in self.registry.champions(self.backbone.fingerprint)}
        backbone = f"backbone {self.backbone.name}, {self.backbone.parameter_count:,} parameters"
        serving = [row for row in self.registry.deltas() if row["delta"] in champions]
        return learner_fragment(backbone, f"registry {redact(self.registry.url)}", serving)
