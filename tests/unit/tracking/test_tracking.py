"""Synchronisation with MLflow: each run and model exists once, through kills, outages and concurrent senders."""

import quopri
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from sqlalchemy import update

from continual.settings import Locations
from continual.tracking import flush_outbox
from continual.tracking.client import MAX_NAME_BYTES, escape_name
from registry import Registry, archive_delta, list_pending, promote_delta, purge_task, registry_identity
from registry.operations.outbox import SEND_LEASE
from registry.schema.base import now
from registry.schema.tables import Delta, OutboxRow
from tests.helpers.databases import registry_url
from tests.helpers.fresh_processes import fresh_processes
from tests.helpers.mlflow_runs import client_of, names_of, runs_of, sync_all, sync_together
from tests.helpers.registries import BACKBONE, begin, learn, learn_in, learn_stream, make_registry


def test_everything_is_sent_once(registry: Registry, places: Locations) -> None:
    learn_stream(registry, "sst2", "trec")
    assert sync_all(registry, places)
    assert names_of(places) == ["core", "sst2@1", "trec@1"]
    runs = {run.info.run_name: run for run in runs_of(places)}
    assert {row["delta"]: row["mlflow_run"] for row in registry.deltas()} == {
        name: runs[name].info.run_id for name in ("sst2@1", "trec@1")
    }
    tags = runs["sst2@1"].data.tags
    assert tags["continual.registry"] == registry_identity(registry)
    assert tags["continual.digest"] == registry.delta("sst2@1").digest
    assert (tags["continual.task"], tags["continual.stream"]) == ("sst2", "core")
    assert tags["continual.backbone"] == BACKBONE.fingerprint
    assert tags["mlflow.parentRunId"] == runs["core"].info.run_id == registry.stream("core").mlflow_run
    assert sync_all(registry, places) == []
    with registry.unit_of_work() as unit:
        unit.enqueue_message("delta", "sst2@1")
        unit.enqueue_message("stream", "core")
        unit.enqueue_message("champion", "sst2")
    assert len(sync_all(registry, places)) == 3
    again = {run.info.run_name: run for run in runs_of(places)}
    assert {name: run.data.metrics for name, run in again.items()} == {n: r.data.metrics for n, r in runs.items()}
    assert sorted(model.name for model in client_of(places).search_model_versions()) == ["core", "sst2", "trec"]
    history = client_of(places).get_metric_history(runs["core"].info.run_id, "oracle_acc")
    assert len({(point.step, point.value) for point in history}) == len(history)


def test_the_trials_of_a_search_are_logged(registry: Registry, places: Locations) -> None:
    learn(registry, "sst2", tried=({"method": "lora", "score": 0.5},))
    sync_all(registry, places)
    (run,) = runs_of(places)
    path = client_of(places).download_artifacts(run.info.run_id, "tried.json")
    assert '"method": "lora"' in Path(path).read_text()


class Killed(BaseException):
    """An exception that stands for a kill."""


class DyingClient:
    """An MLflow client that dies at its n-th call."""

    def __init__(self, client: MlflowClient, calls: int) -> None:
        self.client, self.calls = client, calls

    def __getattr__(self, name: str) -> Any:
        def called(*args: Any, **named: Any) -> Any:
            self.calls -= 1
            if self.calls < 0:
                raise Killed
            return getattr(self.client, name)(*args, **named)

        return called


def test_a_sender_killed_at_any_call_makes_no_duplicate(
    registry: Registry, places: Locations, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_stream(registry, "sst2")
    deaths, calls, remaining = 0, 0, 0
    while rest := list_pending(registry):
        calls, remaining = calls + 1 if len(rest) == remaining else 0, len(rest)
        with registry.unit_of_work() as unit:  # its lease has run out
            unit.session.execute(update(OutboxRow).values(due_at=now() - SEND_LEASE * 2))
        monkeypatch.setattr("mlflow.MlflowClient", dying(calls))
        try:
            list(flush_outbox(registry, places))
        except Killed:
            deaths += 1
        monkeypatch.undo()
    assert deaths > 20
    assert names_of(places) == ["core", "sst2@1"]
    assert [run.info.status for run in runs_of(places)] == ["FINISHED"] * 2
    assert sorted(model.name for model in client_of(places).search_model_versions()) == ["core", "sst2"]
    assert client_of(places).get_model_version_by_alias("sst2", "champion").tags["continual.delta"] == "sst2@1"


def dying(calls: int) -> Any:
    return lambda **arguments: DyingClient(MlflowClient(**arguments), calls)


def test_several_processes_send_each_thing_once(tmp_path: Path, registry: Registry, places: Locations) -> None:
    tasks = [f"task{number}" for number in range(3)]
    learn_stream(registry, *tasks)
    processes = fresh_processes()
    start, errors = processes.Barrier(2), processes.Queue()
    children = [processes.Process(target=sync_together, args=(tmp_path, start, errors)) for _ in range(2)]
    for child in children:
        child.start()
    for _ in children:
        errors.get(timeout=150)
    for child in children:
        child.join()
    list(flush_outbox(registry, places))  # messages that waited for another process's
    assert list_pending(registry) == ()
    assert names_of(places) == ["core", *(f"{task}@1" for task in tasks)]
    assert sorted(model.name for model in client_of(places).search_model_versions()) == ["core", *tasks]


def test_an_unavailable_mlflow_is_synced_later(
    registry: Registry, places: Locations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    learn_stream(registry, "sst2", "trec")
    count = len(list_pending(registry))
    (sent,) = flush_outbox(registry, replace(places, mlflow="http://ada:l0vel4ce@127.0.0.1:9/"))
    assert sent.unreachable, "one message is enough to know"
    assert "l0vel4ce" not in f"{sent}{list_pending(registry)}"
    assert len(list_pending(registry)) == count - 2, "messages on one stream are one"
    sync_all(registry, places)
    assert names_of(places) == ["core", "sst2@1", "trec@1"]


def test_a_new_mlflow_store_is_synced_from_scratch(registry: Registry, places: Locations, empty_mlflow: Path) -> None:
    learn_stream(registry, "sst2")
    sync_all(registry, places)
    shutil.copy(empty_mlflow, places.home / "new.db")
    places = replace(places, mlflow=f"sqlite:///{places.home / 'new.db'}")
    with registry.unit_of_work() as unit:
        unit.enqueue_message("stream", "core")
        unit.enqueue_message("delta", "sst2@1")
        unit.enqueue_message("champion", "sst2")
    sync_all(registry, places)
    assert names_of(places) == ["core", "sst2@1"]
    assert client_of(places).get_model_version_by_alias("sst2", "champion")


def test_the_alias_follows_the_champion(registry: Registry, places: Locations) -> None:
    def champion() -> str:
        return str(client_of(places).get_model_version_by_alias("sst2", "champion").tags["continual.delta"])

    learn(registry, "sst2", score=0.5)
    sync_all(registry, places)
    assert champion() == "sst2@1"
    learn(registry, "sst2", score=0.4)
    sync_all(registry, places)
    assert champion() == "sst2@1"
    learn(registry, "sst2", score=0.6)
    sync_all(registry, places)
    assert champion() == "sst2@3"
    client_of(places).set_registered_model_alias("sst2", "mine", "1")
    with registry.unit_of_work() as unit:
        unit.session.execute(update(Delta).values(status="archived"))
        unit.enqueue_message("champion", "sst2")
    sync_all(registry, places)
    assert client_of(places).get_registered_model("sst2").aliases == {"mine": 1}


def test_registries_that_share_an_mlflow_keep_apart(
    tmp_path: Path, registry: Registry, places: Locations, tmp_path_factory: pytest.TempPathFactory
) -> None:
    learn_stream(registry, "sst2")
    sync_all(registry, places)
    elsewhere = tmp_path_factory.mktemp("other")
    with make_registry(elsewhere) as other_registry:
        learn_stream(other_registry, "sst2")
        assert other_registry.delta("sst2@1").digest == registry.delta("sst2@1").digest
        sync_all(other_registry, replace(places, registry=registry_url(elsewhere)))
        mark = registry_identity(other_registry)[:8]
    assert names_of(places) == ["core", "core", "sst2@1", "sst2@1"]
    models = {model.name for model in client_of(places).search_registered_models()}
    assert models > {"sst2", f"sst2=={mark}", "core"}
    assert len(models) == 4, "each has a stream of that name"


def test_purged_tasks_are_deleted_from_mlflow(registry: Registry, places: Locations) -> None:
    learn_stream(registry, "sst2", "trec")
    sync_all(registry, places)
    purge_task(registry, "sst2")
    with registry.unit_of_work() as unit:
        unit.enqueue_message("delta", "sst2@1")
    sync_all(registry, places)
    assert names_of(places) == ["core", "trec@1"]
    models = client_of(places).search_registered_models()
    assert {model.name: model.aliases.get("champion") for model in models} == {"trec": 1, "core": 2}
    assert [version.version for version in client_of(places).search_model_versions("name = 'core'")] == [2]
    files = {path for path in (places.home / "mlflow-artifacts").rglob("*") if path.is_file()}
    files -= set((places.home / "mlflow-artifacts").rglob("report.*"))  # names a stream's places, as the registry
    assert not [path for path in files if "sst2" in path.name or b"sst2" in path.read_bytes()]
    with sqlite3.connect(places.mlflow.removeprefix("sqlite:///")) as database:
        dumped = [line for line in database.iterdump() if "sst2" in line]
    assert dumped == [], "not in the bin either"


def test_a_streams_model_follows_its_tasks_champions(registry: Registry, places: Locations) -> None:
    def champion() -> int | None:
        version: int | None = client_of(places).get_registered_model("core").aliases.get("champion")
        return version

    begin(registry, "sst2", "trec")
    learn(registry, "other")
    with registry.unit_of_work() as unit:
        unit.mark_learned("core", 0, delta=learn_in(unit, registry, "sst2"))
    sync_all(registry, places)
    assert {model.name for model in client_of(places).search_registered_models()} == {"other", "sst2"}, "not ended"
    with registry.unit_of_work() as unit:
        unit.mark_learned("core", 1, delta=learn_in(unit, registry, "trec"))
    sync_all(registry, places)
    assert champion() == 1
    learn(registry, "sst2", score=0.4)
    learn(registry, "other", score=0.9)
    sync_all(registry, places)
    assert champion() == 1, "what serves is the same"
    learn(registry, "sst2", score=0.6)
    sync_all(registry, places)
    assert champion() == 2
    promote_delta(registry, "sst2@1")
    sync_all(registry, places)
    assert champion() == 1
    archive_delta(registry, "trec@1")
    sync_all(registry, places)
    assert champion() == 3
    archive_delta(registry, "sst2@1")
    sync_all(registry, places)
    assert champion() is None


def test_a_task_and_a_stream_of_one_name_have_separate_models(registry: Registry, places: Locations) -> None:
    learn_stream(registry, "sst2")
    sync_all(registry, places)
    learn(registry, "core")
    sync_all(registry, places)
    models = {model.name: model.tags for model in client_of(places).search_registered_models()}
    assert models["core"]["continual.stream"] == "core"
    assert models[f"core=={registry_identity(registry)[:8]}"]["continual.task"] == "core"


HOSTILE = "../<script>alert(1)</script>/a:b?c#d'e\"f%2F $x_$ 日本"
STREAM = "<b>core</b>/../$\\frac"


def test_names_are_escaped_in_mlflow_filters(registry: Registry, places: Locations) -> None:
    begin(registry, HOSTILE, name=STREAM)
    with registry.unit_of_work() as unit:
        unit.mark_learned(STREAM, 0, delta=learn_in(unit, registry, HOSTILE, score=0.5))
    sync_all(registry, places)
    assert names_of(places) == sorted([f"{HOSTILE}@1", STREAM])
    client, (run,) = client_of(places), [run for run in runs_of(places) if "continual.delta" in run.data.tags]
    (artifact,) = client.list_artifacts(run.info.run_id, "delta")
    root = places.home / "mlflow-artifacts"
    assert [path.name for path in (root / run.info.run_id / "artifacts" / "delta").iterdir()] == [
        Path(artifact.path).name
    ]
    assert {path.name for path in places.home.iterdir()} >= {"mlflow-artifacts", "blobs"}
    models = client.search_registered_models()
    assert not set("/:?#'\"<>%$ ").intersection("".join(model.name for model in models))
    (model,) = [model for model in models if model.tags.get("continual.task") == HOSTILE]
    assert [each.tags["continual.stream"] for each in models if each.name != model.name] == [STREAM]
    assert quopri.decodestring(model.name.encode()).decode() == HOSTILE
    assert client.get_model_version_by_alias(model.name, "champion").tags["continual.delta"] == f"{HOSTILE}@1"
    purge_task(registry, HOSTILE)
    sync_all(registry, places)
    assert names_of(places) == [STREAM]
    assert client.search_registered_models() == []


@pytest.mark.parametrize("name", ["a" * 400, "日本" * 200, "/" * 100])
def test_a_long_name_is_truncated_and_stays_unique(name: str) -> None:
    assert len(escape_name(name).encode()) <= MAX_NAME_BYTES
    assert escape_name(name) != escape_name(name + "x")
    assert escape_name(name) == escape_name(name)
