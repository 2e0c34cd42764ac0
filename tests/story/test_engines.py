"""A stream learned by workers of a two-node Ray cluster that lose a process, a node, and their driver."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from continual import Learner
from continual.callbacks import RunCallbacks
from continual.errors import EngineError, TrainingError
from continual.settings import resolve_locations
from continual.streams.engine import LOCAL_ENGINE, resolve_engine
from continual.streams.estimate import estimate_memory
from continual.streams.preflight import load_and_check, register_stream
from continual.streams.stream_run import StreamRun
from registry import Registry, find_damage, save_checkpoint
from tasks import Stream
from tasks.errors import InputError
from tests.helpers.claims import claim_position
from tests.helpers.cli import CliRunner
from tests.helpers.registries import digest_of
from tests.story.test_stream import open_home, write_stream

ray = pytest.importorskip("ray", reason="ray (extra `ray`) is not installed")

from ray.cluster_utils import Cluster  # noqa: E402

from continual.cluster import ResourceRequest, publish_probe  # noqa: E402
from continual.streams.ray.engine import RayEngine  # noqa: E402
from continual.streams.ray.worker_pool import WorkerPool  # noqa: E402
from tests.helpers import eager_worker  # noqa: E402

TASKS = ("animals", "mood", "place", "food")
DELTAS = [f"{task}@1" for task in TASKS]
BUDGET = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "max_length": 32}
LONG = {"budget": BUDGET | {"epochs": 25}}  # long enough to be interrupted
FAR = "elsewhere:1:1"
NODE = {"num_cpus": 1, "memory": 4 << 30, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Cluster]:
    """A cluster of two nodes with room for one worker each, with credentials of the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # as busy as the tests beside them
        ray_cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        ray_cluster.add_node(**NODE)
    ray.cloudpickle.register_pickle_by_value(eager_worker)  # the tests' modules are no worker's
    ray.init(address=ray_cluster.address, log_to_driver=False, logging_level="ERROR")
    yield ray_cluster
    ray.shutdown()
    ray_cluster.shutdown()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("continual.streams.ray.worker_pool.Worker", eager_worker.EagerWorker)


def four_tasks(folder: Path, long: Sequence[str] = ("mood",), **keys: Any) -> Stream:
    """Write a stream of four tiny tasks, some of them with more epochs."""
    return write_stream(folder, tasks=TASKS, changes=dict.fromkeys(long, LONG), **{"budget": BUDGET} | keys)


def digests(learner: Learner) -> dict[str, str]:
    return {row["delta"]: digest_of(learner.registry, row["delta"]) for row in learner.registry.deltas()}


def attempts(learner: Learner) -> dict[str, int]:
    return {position.task: position.attempts for position in learner.registry.positions("core")}


class CallbackLog:
    """A record of a run's callbacks that triggers a fault once, late in the training of `mood`."""

    def __init__(self, happens: Any = None) -> None:
        self.started: list[str] = []
        self.learned: list[str] = []
        self.noted: list[str] = []
        self.order: list[str] = []
        self._happens = happens

    def watcher(self) -> RunCallbacks:
        return RunCallbacks(on_start=self._began, on_step=self._step, on_learned=self._learned, on_note=self._noted)

    def _began(self, task: str) -> None:
        self.started.append(task)
        self.order.append("began")

    def _learned(self, task: str, delta: str) -> None:
        self.learned.append(delta)
        self.order.append("learned")

    def _noted(self, task: str, note: str) -> None:
        self.noted.append(f"{task}: {note}")

    def _step(self, task: str, done: int, total: int) -> None:
        if task == "mood" and done > total / 4 and self._happens:
            happens, self._happens = self._happens, None
            happens()


def test_a_killed_worker_changes_no_result(
    cluster: Cluster, bucket: str, postgres_url: str, bert_folder: Path, tmp_path: Path
) -> None:
    """In PostgreSQL and a bucket: the deltas of a local run, each reported once, here and to MLflow."""
    stream = four_tasks(tmp_path, warm_start="scratch")
    places = replace(resolve_locations(tmp_path / "home", {}), registry=postgres_url, blobs=f"{bucket}/engines")
    with Learner.open(
        str(bert_folder), Registry.open(postgres_url, places.blobs), device="cpu", dtype="float32"
    ) as opened:
        learner = Learner(opened.backbone, opened.registry, places)

        def kill() -> None:
            (position,) = [p for p in learner.registry.positions("core") if p.task == "mood"]
            assert position.holder
            os.kill(int(position.holder.split(":")[1]), signal.SIGKILL)

        log = CallbackLog(kill)
        assert learner.run(stream, callbacks=log.watcher(), engine=resolve_engine("ray", workers=2)) == {}
        assert sorted(log.learned) == sorted(DELTAS), "each is learned once"
        assert Counter(log.started) == {task: 2 if task == "mood" else 1 for task in TASKS}
        assert attempts(learner) == {task: 2 if task == "mood" else 1 for task in TASKS}
        assert [note for note in log.noted if "goes on after epoch" in note], "it goes on from its last checkpoint"
        assert find_damage(learner.registry) == []
        actual, report = digests(learner), learner.report("core")
    client = MlflowClient(tracking_uri=places.mlflow)
    runs = client.search_runs([client.get_experiment_by_name("continual").experiment_id])
    assert sorted(run.info.run_name for run in runs) == sorted(["core", *DELTAS]), "MLflow is told once"
    with open_home(bert_folder, tmp_path / "local") as local:
        assert local.run(stream, engine=LOCAL_ENGINE) == {}
        assert digests(local) == actual
        assert local.report("core")["routed"]["matrix"] == report["routed"]["matrix"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "rey"], "'rey' is not known; allowed: local, ray"),
        (["--workers", "2"], "has no option workers"),
        (["--engine", "ray", "--worker-cpus", "64"], "its nodes have 1 CPUs"),
        (
            ["--engine", "ray", "--worker-memory", "4000"],
            "room for 0 workers with 1 CPUs, 0 GPUs and 4000.0 GiB each",
        ),
        (["--engine", "ray", "--worker-gpus", "1"], "--worker-gpus"),
    ],
    ids=str,
)
def test_impossible_resource_requests_are_refused(
    cluster: Cluster, cli: CliRunner, bert_folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    four_tasks(tmp_path)
    result = cli("run", str(tmp_path / "stream.yaml"), "--backbone", str(bert_folder), *options)
    assert (result.code, message in result.err) == (2, True), result.err
    assert cli("deltas", "--json").json == []


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(EngineError, match=r"no option worker; allowed: address, workers, worker_cpus"):
        resolve_engine("ray", worker=3)


def test_no_more_workers_start_than_there_is_room_for(caplog: pytest.LogCaptureFixture) -> None:
    assert RayEngine(workers=8)._worker_count(4, tasks=9) == 4
    assert "8 workers are asked for; the cluster has room for 4" in caplog.text
    assert [
        RayEngine(workers=2)._worker_count(4, tasks=9),
        RayEngine()._worker_count(4, tasks=9),
        RayEngine(workers=8)._worker_count(4, tasks=3),
    ] == [2, 4, 3]


def test_checkpointing_and_quantisation_lower_the_estimate(bert_folder: Path, tmp_path: Path) -> None:
    with open_home(bert_folder, tmp_path / "home") as learner:
        plain, checkpointed = (
            load_and_check(
                learner.backbone, learner.registry, four_tasks(tmp_path, budget=BUDGET | {"checkpointing": again})
            )[0]
            for again in (False, True)
        )
        backbone = learner.backbone
        rows = BUDGET["batch_size"] * min(BUDGET["max_length"], backbone.longest_input)
        saved = (68 * backbone.num_layers - 68 - 4 * backbone.num_layers) * rows * backbone.hidden_size
        assert estimate_memory(backbone, [plain]) - estimate_memory(backbone, [checkpointed]) == saved > 0
        full = estimate_memory(backbone, [])
        backbone.base_module.half()
        assert estimate_memory(backbone, []) == full / 2


def test_each_run_checks_blobs_with_its_own_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe survives the end of another run, and garbage collection."""
    monkeypatch.setattr("continual.cluster.PROBE_REFRESH_SECONDS", 0.01)
    places = resolve_locations(tmp_path, {})
    with Registry.open(places.registry, places.blobs) as registry, publish_probe(registry) as first:
        with publish_probe(registry) as second:
            second.verify(registry)
        with pytest.raises(InputError, match="does not hold the blobs"):
            second.verify(registry)
        registry.blobs.delete(registry.blobs.stat(first.blob_digest), put_before=None)  # type: ignore[arg-type]
        while not registry.blobs.exists(first.blob_digest):
            pass
        first.verify(registry)
        with (
            Registry.open(f"sqlite:///{tmp_path}/other.db", places.blobs) as another,
            pytest.raises(InputError, match="another registry here"),
        ):
            first.verify(another)


def test_without_ray_the_extra_is_named(
    cli: CliRunner, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four_tasks(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "continual.streams.ray.engine", None)
    result = cli("run", str(tmp_path / "stream.yaml"), "--backbone", str(bert_folder), "--engine", "ray")
    assert (result.code, "pip install 'continual-deltas[ray]'" in result.err) == (2, True), result.err


def test_storage_that_workers_cannot_reach_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    stream = four_tasks(tmp_path)
    with (
        Learner.open(str(bert_folder), Registry.open("sqlite://", "memory://engines"), device="cpu") as learner,
        pytest.raises(InputError, match=r"memory of this process"),
    ):
        learner.run(stream, engine=RayEngine())


def test_a_backbone_that_is_in_memory_only_is_refused(cluster: Cluster, bert_folder: Path, tmp_path: Path) -> None:
    """A worker cannot load it by name, and reports this before the stream starts."""
    stream = four_tasks(tmp_path)
    with open_home(bert_folder, tmp_path / "home") as saved:
        learner = Learner(replace(saved.backbone, name=str(tmp_path / "nowhere")), saved.registry)
        with pytest.raises(EngineError, match=r"a worker cannot start.*BackboneError.*nowhere"):
            learner.run(stream, engine=RayEngine(workers=1))
        assert learner.registry.streams() == ()


def test_a_task_that_kills_three_workers_fails(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three deaths at one point of training; progress in between resets the count."""
    stream, started, failed = four_tasks(tmp_path), [], []
    monkeypatch.setattr(WorkerPool, "_start", lambda crew: started.append(crew))
    with open_home(bert_folder, tmp_path / "home") as learner:
        loaded = load_and_check(learner.backbone, learner.registry, stream)
        register_stream(learner.backbone, learner.registry, stream, loaded)
        watcher = RunCallbacks(on_failed=lambda task, error: failed.append(error))
        rows = dict(enumerate(loaded))
        job = StreamRun(learner.backbone, learner.registry, stream, rows, dict.fromkeys(rows, 2), watcher)
        crew = WorkerPool(job, None, ResourceRequest(cpus=1, gpus=0, memory=0))
        for epoch in (None, None, 1, None, None):
            assert claim_position(learner.registry, "core", number=1, holder=FAR)
            if epoch:
                save_checkpoint(learner.registry, "core", number=1, holder=FAR, epoch=epoch, data=b"so far")
            assert failed == []
            crew._replace(FAR, "(killed)")
        assert len(started) == 5
        assert failed == ["TrainingError: 3 workers were lost while they learned it; the last (killed)"]
        assert [p.state for p in job.positions()] == ["waiting", "failed", "waiting", "waiting"]


def test_evaluation_does_not_count_as_waiting_for_a_worker(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long evaluation takes, events of started workers are received before the timeout counts."""
    stream = four_tasks(tmp_path)
    monkeypatch.setattr("continual.streams.ray.worker_pool.NO_WORKER_TIMEOUT", 0.05)
    monkeypatch.setattr("continual.streams.ray.worker_pool.POLL_SECONDS", 0.02)

    def wait(answers: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        time.sleep(timeout)
        return [], answers

    monkeypatch.setattr("continual.streams.ray.worker_pool.ray.wait", wait)
    monkeypatch.setattr(
        "continual.streams.ray.worker_pool.StreamEvaluator.evaluate_available", lambda measuring: time.sleep(0.1)
    )
    with open_home(bert_folder, tmp_path / "home") as learner:
        loaded = load_and_check(learner.backbone, learner.registry, stream)
        register_stream(learner.backbone, learner.registry, stream, loaded)
        job = StreamRun(learner.backbone, learner.registry, stream, dict(enumerate(loaded)), {}, RunCallbacks())
        crew = WorkerPool(job, None, ResourceRequest(cpus=1, gpus=0))
        calls: list[float] = []
        receive_events = crew._receive_events

        def count_and_receive(seconds: float) -> None:
            calls.append(seconds)
            receive_events(seconds)

        monkeypatch.setattr(crew, "_receive_events", count_and_receive)
        crew._starting["an answer"] = None
        with pytest.raises(TrainingError, match=r"no room for a worker for 0.05 s"):
            crew.run_until_done()
        assert calls


def test_an_interrupted_run_releases_every_position(cluster: Cluster, bert_folder: Path, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    stream = four_tasks(tmp_path)
    with open_home(bert_folder, tmp_path / "home") as learner:
        with pytest.raises(KeyboardInterrupt):
            learner.run(stream, callbacks=CallbackLog(stop).watcher(), engine=RayEngine(workers=1))
        states = {p.task: (p.state, p.holder) for p in learner.registry.positions("core")}
        assert states["mood"] == states["food"] == ("waiting", None)
        assert learner.run(stream) == {}, "another run goes on"


def test_a_lost_node_changes_no_result(cluster: Cluster, bert_folder: Path, tmp_path: Path) -> None:
    """Workers do not wait for a warm start still in training, and the remaining node learns the rest."""
    stream = four_tasks(tmp_path, long=("mood", "food"), warm_start="auto")  # both workers are busy to the end
    log = CallbackLog(lambda: cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False))
    with open_home(bert_folder, tmp_path / "home") as learner:
        assert learner.run(stream, callbacks=log.watcher(), engine=RayEngine()) == {}
        assert sorted(log.learned) == sorted(DELTAS) == sorted(digests(learner))
        assert log.order.index("learned") >= 2, "two tasks begin at once"
        assert sum(attempts(learner).values()) == len(TASKS) + 1
        assert find_damage(learner.registry) == []
        report = learner.report("core")
        assert report["oracle"]["acc"] > 0.8
        assert report["routed"]["acc"] > 0.6
        assert all(report["routed"]["matrix"][t][i] is not None for t in range(4) for i in range(t + 1))
