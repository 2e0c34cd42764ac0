"""The whole system behind one object, for use from Python."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self, final

from continual.backbones.backbone import Backbone, load_backbone
from continual.backbones.devices import DeviceSpec
from continual.callbacks import NO_CALLBACKS, RunCallbacks
from continual.exchange import export_delta, import_delta
from continual.experiments.strategies import DEFAULT, Strategy, build_strategies, compare_strategies
from continual.inference.predictor import Prediction, Predictor
from continual.reports.report import Document, stream_report
from continual.settings import DEFAULT_HOME, FALSE_ABSTENTION_RATE, Locations, resolve_locations
from continual.streams.arrivals import watch
from continual.streams.controller import RETRIES, run_stream
from continual.streams.engine import LOCAL_ENGINE, Engine
from continual.streams.migration.migrate import run_migration
from continual.streams.migration.outcome import MigrationOutcome
from continual.streams.migration.plan import plan_migration
from continual.streams.positions import learn_task
from continual.streams.preflight import load_and_check, require_trainable
from continual.tracking import background_sender
from registry import Registry
from tasks import Stream, TaskSpec, Text
from tasks.errors import InputError


@final
class Learner:
    """A frozen backbone, the registry of what was learned on it, and MLflow beside it.

    >>> from continual import Learner                                                            # doctest: +SKIP
    >>> with Learner.open(backbone="minilm", registry="my-home") as learner:                     # doctest: +SKIP
    ...     learner.run(read_stream("stream.yaml"))
    ...     learner.predict(["my card is lost"])[0].label
    'lost_card'
    """

    def __init__(self, backbone: Backbone, registry: Registry, places: Locations | None = None) -> None:
        """`places` says where MLflow is; without it MLflow is told nothing."""
        self.backbone = backbone
        self.registry = registry
        self.locations = places

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
        """Load a backbone by name, hub id or folder, and open a registry or the home folder that holds one.

        device, bits: as of `load_backbone`. What is learned in a home goes to its MLflow too; with a registry of its
        own, MLflow is left alone.
        Raises BackboneError, SchemaError or RegistryError where one of the two cannot be had.
        """
        if "://" in str(registry):
            raise InputError(f"registry {registry!r} is a URL; give a folder, or Registry.open(url, blobs)")
        loaded = load_backbone(backbone, device=device, dtype=dtype, bits=bits)
        if isinstance(registry, Registry):
            return cls(loaded, registry)
        places = resolve_locations(registry)
        return cls(loaded, Registry.open(places.registry, places.blobs), places)

    def close(self) -> None:
        self.registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def run(
        self,
        stream: Stream,
        *,
        watcher: RunCallbacks = NO_CALLBACKS,
        retries: int = RETRIES,
        engine: Engine = LOCAL_ENGINE,
    ) -> dict[str, str]:
        """Learn what a stream has not learned yet; the tasks that failed, by name, with what went wrong.

        retries: how often a task that failed is tried again, after the others · engine: where it is learned, in this
        process or, as `resolve_engine("ray", workers=8)`, elsewhere.
        """
        with self._telling():
            return run_stream(self.backbone, self.registry, stream, watcher=watcher, retries=retries, engine=engine)

    def watch(
        self, folder: Path | str | None = None, *, idle: float | None = None, watcher: RunCallbacks = NO_CALLBACKS
    ) -> dict[int, str | None]:
        """Learn what is submitted to the registry (`Registry.submit`) as it arrives, by priority, for ever.

        folder: task files that are dropped there are submitted too · idle: end when for so many seconds nothing has
        been left to learn. By the number of each arrival that ended here, what went wrong, None where it was learned.
        """
        with self._telling():
            return watch(
                self.backbone,
                self.registry,
                folder=None if folder is None else Path(folder),
                idle=idle,
                watcher=watcher,
            )

    def compare(
        self,
        stream: Stream,
        strategies: Mapping[str, Strategy | None] | None = None,
        *,
        watcher: RunCallbacks = NO_CALLBACKS,
    ) -> Document:
        """Learn a stream by other strategies too, as far as that was not done before, and say what came of each.

        strategies: those of `continual.experiments.strategies.catalog` that are wanted; by default all but
        `ewc_full`. What failed is listed under `failed`. Raises InputError before anything is learned.
        """
        every = build_strategies()
        wanted = {name: every[name] for name in DEFAULT} if strategies is None else strategies
        with self._telling():
            return compare_strategies(self.backbone, self.registry, stream, wanted, watcher=watcher)

    def learn(self, task: TaskSpec | Stream, *, folder: Path | str = ".", watcher: RunCallbacks = NO_CALLBACKS) -> str:
        """Learn one task, again if it is known, and return the name of its new delta, such as `sst2@1`.

        `task` is a spec, whose relative data files start from `folder`, or what `read_task` gives.
        Raises InputError before anything is learned, LearnError when training fails.
        """
        require_trainable(self.backbone)
        alone = task if isinstance(task, Stream) else Stream(name=task.name, tasks=(task,), folder=Path(folder))
        (data,) = load_and_check(self.backbone, self.registry, alone, alone=True)
        with self._telling():
            delta = learn_task(self.backbone, self.registry, data, alone, watcher=watcher)
            watcher.on_learned(data.spec.name, delta)
        return delta

    def migrate(
        self,
        origin: str | None = None,
        tasks: Collection[str] | None = None,
        *,
        name: str | None = None,
        watcher: RunCallbacks = NO_CALLBACKS,
    ) -> list[MigrationOutcome]:
        """Learn on this backbone what is served on another one, as far as that was not done; what came of each task.

        origin: the name or fingerprint of the other one, where several could be meant · tasks, name: as of `planned`.
        Raises InputError before anything is learned.
        """
        migration = plan_migration(self.backbone, self.registry, origin=origin, tasks=tasks, name=name)
        with self._telling():
            return run_migration(migration, watcher)

    def export(self, delta: str, folder: Path | str, *, form: str = "peft") -> tuple[str, ...]:
        """Write a delta as PEFT's folder (`peft`), or merged into a model (`transformers`); the names of the files.

        Raises NotFound, or ExchangeError where the format has no form of the delta's method.
        """
        return export_delta(self.backbone, self.registry, delta, folder=Path(folder), form=form)

    def import_peft(self, folder: Path | str, task: str, *, rows: Stream | None = None) -> str:
        """Register what PEFT saved in a folder as the next version of a task's delta, and return its name.

        `rows`, what `read_task` gives for the task, are what it is scored on; without them it has no score.
        Raises NotFound for the task, ExchangeError for a folder that does not fit.
        """
        if rows is not None and rows.name != task:
            raise InputError(f"the rows are of task {rows.name!r}, not of {task!r}; give the file of the task itself")
        data = None if rows is None else load_and_check(self.backbone, self.registry, rows, alone=True)[0]
        with self._telling():
            return import_delta(self.backbone, self.registry, Path(folder), task=task, data=data)

    def _telling(self) -> AbstractContextManager[None]:
        return background_sender(self.registry, self.locations) if self.locations else nullcontext()

    def predict(
        self,
        texts: Sequence[Text],
        task: str | Sequence[str | None] | None = None,
        *,
        router: str = "auto",
        false_abstentions: float = FALSE_ABSTENTION_RATE,
        at_least: float | None = None,
    ) -> list[Prediction]:
        """One prediction per text, in order; without `task` the router chooses, or says that it is none of the tasks.

        task: of all texts, or of each · router, false_abstentions: as of `Predictor` · at_least: name every task of
        this probability, with its answer.
        """
        predictor = Predictor(self.backbone, self.registry, router=router, false_abstentions=false_abstentions)
        return predictor.predict(texts, task=task, at_least=at_least)

    def report(self, stream: str) -> Document:
        """Score matrices and measures of a stream, oracle and routed."""
        return stream_report(self.registry, stream)
