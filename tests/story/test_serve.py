"""The HTTP server: the answers of `predict`, one error format, API keys, and refreshed champions."""

# ruff: noqa: F811 (fixtures are imported by their names)

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from continual import Learner
from continual.inference.predictor import Prediction, Predictor
from continual.serve import ChampionServer, Limits
from continual.serve.core.champions import InferenceRequest
from registry import add_key, archive_delta, promote_delta, revoke_key
from tests.helpers.live_server import (  # noqa: F401
    POLL,
    Server,
    ask,
    error_body,
    folder,
    forget_keys,
    learner,
    missing_blob,
    served,
    server,
    wait_until,
)
from tests.helpers.tiny_tasks import rows_of

TASKS = ["animals", "mood"]


@pytest.fixture
def texts() -> list[str]:
    return [str(text) for number in range(4) for task in TASKS for text in rows_of(task, 1, seed=number).texts]


def close(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if isinstance(value, float):
            assert actual[key] == pytest.approx(value, abs=1e-3), key
        elif key != "possible":
            assert actual[key] == value, key


def test_answers_equal_those_of_predict(served: Server, learner: Learner, texts: list[str]) -> None:
    predictor = Predictor(learner.backbone, learner.registry)
    tasks = [None if i % 3 == 0 else TASKS[i % 2] for i in range(len(texts))]
    rows = [{"text": text} | ({"task": task} if task else {}) for text, task in zip(texts, tasks, strict=True)]
    answers = ask(served, *rows).json()["predictions"]
    for answer, expected in zip(answers, predictor.predict(texts, task=tasks), strict=True):
        close(answer, expected.to_json())


def test_all_likely_tasks_are_returned_on_request(served: Server, learner: Learner, texts: list[str]) -> None:
    expected = Predictor(learner.backbone, learner.registry).predict(texts, at_least=0.01)
    answers = ask(served, *({"text": text} for text in texts), at_least=0.01).json()["predictions"]
    for answer, prediction in zip(answers, expected, strict=True):
        named = {possible.task: possible.label for possible in prediction.possible}
        assert {possible["task"]: possible["label"] for possible in answer["possible"]} == named
    assert any(len(answer["possible"]) > 1 for answer in answers)


def test_the_router_chooses_among_the_given_tasks(served: Server, learner: Learner, texts: list[str]) -> None:
    expected = Predictor(learner.backbone, learner.registry).predict(texts, among=["mood"])
    answers = ask(served, *({"text": text} for text in texts), among=["mood", "mood"]).json()["predictions"]
    for answer, prediction in zip(answers, expected, strict=True):
        close(answer, prediction.to_json())
        assert answer["task"] in ("mood", None)
    assert "mood" in error_body(ask(served, {"text": "a"}, among=["moood"]), 404)


def test_a_text_may_be_a_pair(served: Server) -> None:
    (answer,) = ask(served, {"text": ["red cat", "blue dog"], "task": "mood"}).json()["predictions"]
    assert answer["text"] == ["red cat", "blue dog"]
    assert answer["task"] == "mood"


def test_further_columns_are_handed_back(served: Server) -> None:
    row = {"text": "red cat", "task": "mood", "id": 7, "label": {"gold": ["\ud800", None]}}
    json_type = {"content-type": "application/json"}
    response = served.client.post("/v1/predict", content=json.dumps({"rows": [row]}), headers=json_type)
    (answer,) = response.json()["predictions"]
    assert (answer["id"], answer["input_label"]) == (7, {"gold": ["\ud800", None]})
    refused = served.client.post("/v1/predict", content='{"rows": [{"text": "a", "x": NaN}]}', headers=json_type)
    assert "body.rows.0" in error_body(refused, 422)


def test_concurrent_clients_get_their_own_answers(served: Server, texts: list[str]) -> None:
    rows = [{"text": text, "task": TASKS[i % 2]} for i, text in enumerate(texts)]
    alone = [ask(served, row).json()["predictions"][0]["label"] for row in rows]
    with ThreadPoolExecutor(16) as pool:
        responses = [*pool.map(lambda i: ask(served, rows[i % len(rows)]), range(160))]
    assert [response.json()["predictions"][0]["label"] for response in responses] == alone * (160 // len(rows))


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"rows": [{"text": "x", "task": "moood"}]}, 404, "mood"),
        ({"rows": []}, 422, "rows"),
        ({"rows": [{"text": 1}]}, 422, "text"),
        ({"rows": [{"text": ["a"]}]}, 422, "text"),
        ({"rows": [{"txt": "a"}]}, 422, "text"),
        ({"rows": [{"text": "a"}], "at_least": 2}, 422, "at_least"),
        ({"rows": [{"text": "a"}], "among": []}, 422, "among"),
        ({"rows": [{"text": "a"}] * 65}, 413, "65 inputs"),
        ({"rows": [{"text": "a" * 9000}]}, 413, "tokens"),
        ({"rows": [{"text": "a" * 30_000}]}, 413, "20000 bytes"),
    ],
)
def test_unanswerable_rows_are_errors(learner: Learner, body: Any, status: int, says: str) -> None:
    with server(learner, limits=Limits(rows=64, tokens=2000, bytes=20_000)) as small:
        assert says in error_body(small.client.post("/v1/predict", json=body), status)
        body = (part for part in [json.dumps(body).encode()])  # chunked: without a content length
        assert says in error_body(
            small.client.post("/v1/predict", content=body, headers={"content-type": "application/json"}), status
        )


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"rows": [{"text": "\\ud800"}]}'])
def test_invalid_bodies_are_refused(served: Server, body: bytes) -> None:
    response = served.client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    error_body(response, 422)


def test_other_paths_and_methods_are_refused_in_the_same_format(served: Server) -> None:
    error_body(served.client.get("/v1/nothing"), 404)
    error_body(served.client.delete("/v1/predict"), 405)
    assert "evil.com" in error_body(served.client.get("/v1/tasks", headers={"host": "evil.com"}), 400)
    assert "x-request-timeout" in error_body(
        served.client.post("/v1/predict", json={"rows": [{"text": "a"}]}, headers={"x-request-timeout": "soon"}), 422
    )


def test_a_task_without_a_delta_on_this_backbone_is_a_conflict(learner: Learner) -> None:
    with server(learner) as running:
        archive_delta(learner.registry, "mood@1")
        try:
            assert running.client.post("/v1/refresh").status_code == 200
            assert "no delta on backbone" in error_body(ask(running, {"text": "a", "task": "mood"}), 409)
            assert ask(running, {"text": "a", "task": "animals"}).status_code == 200
        finally:
            promote_delta(learner.registry, "mood@1")


def test_a_new_champion_answers_without_a_restart(learner: Learner) -> None:
    with server(learner) as running:
        archive_delta(learner.registry, "mood@1")
        wait_until(lambda: ask(running, {"text": "a", "task": "mood"}).status_code == 409)
        promote_delta(learner.registry, "mood@1")
        wait_until(lambda: ask(running, {"text": "a", "task": "mood"}).status_code == 200)


def test_an_unanswerable_text_costs_the_others_little(
    learner: Learner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    asks = [InferenceRequest("red cat" if i != 40 else "bad", embed=True) for i in range(64)]
    whole = ChampionServer._embed

    def embedded(self: ChampionServer, texts: Any) -> Any:
        sizes.append(len(texts))
        if "bad" in texts:
            raise RuntimeError("bad")
        return whole(self, texts)

    monkeypatch.setattr(ChampionServer, "_embed", embedded)
    answers = ChampionServer(learner.backbone, learner.registry).answer_batch(asks)
    assert [i for i, answer in enumerate(answers) if isinstance(answer, Exception)] == [40]
    assert len(sizes) == 1 + 2 * 6


def test_a_new_task_is_answered_while_its_router_is_built(learner: Learner) -> None:
    archive_delta(learner.registry, "mood@1")
    serving, built = ChampionServer(learner.backbone, learner.registry), Event()
    serving.refresh()
    promote_delta(learner.registry, "mood@1")
    real = Predictor.build_router
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(Predictor, "build_router", lambda predictor: built.wait(20) and real(predictor))
        looking = pool.submit(serving.refresh)
        try:
            wait_until(lambda: "mood" in serving.champions)
            named, routed = serving.answer_batch(
                [InferenceRequest("a", "mood"), InferenceRequest(str(rows_of("animals", 1).texts[0]))]
            )
            assert not looking.done()
        finally:
            built.set()
        assert looking.result(20)
    assert isinstance(named, Prediction)
    assert named.label
    assert isinstance(routed, Prediction), "by the router of before"


def test_an_unreadable_delta_fails_only_its_own_rows(learner: Learner) -> None:
    with missing_blob(learner, "mood"), server(learner) as running:
        bad, good = ask(running, {"text": "a", "task": "mood"}, {"text": "a", "task": "animals"}).json()["predictions"]
    assert "BlobError" in bad["error"]
    assert (bad["label"], good["error"]) == (None, None)
    assert good["label"]


def test_the_registry_can_be_read_over_http(served: Server, learner: Learner) -> None:
    get = served.client.get
    assert get("/v1/tasks").json() == learner.registry.tasks()
    assert get("/v1/deltas", params={"task": "mood"}).json() == learner.registry.deltas("mood")
    assert get("/v1/lineage", params={"delta": "mood@1"}).json() == learner.registry.lineage("mood@1")
    assert get("/v1/report", params={"stream": "served"}).json()["oracle"] == learner.report("served")["oracle"]
    assert [row["stream"] for row in get("/v1/streams").json()] == ["served"]
    assert {row["task"] for row in get("/v1/similar", params={"task": "mood"}).json()} <= {"animals", "echo"}
    assert "served" in error_body(get("/v1/report", params={"stream": "servd"}), 404)
    assert get("/healthz").json() == {"status": "ok"}
    assert get("/readyz").json() == {"status": "ok", "tasks": 3}


def test_metrics_count_rows_by_task(learner: Learner) -> None:
    with server(learner) as running:
        ask(running, {"text": "a", "task": "mood"}, {"text": "b", "task": "mood"})
        ask(running, {"text": "a", "task": "moood"})
        metrics = running.client.get("/metrics").text
    assert 'continual_rows_total{outcome="answered",task="mood"} 2.0' in metrics
    assert 'continual_requests_total{path="/v1/predict",status="404"} 1.0' in metrics
    assert 'continual_resident{place="memory",task="mood"} 1.0' in metrics
    assert 'continual_resident{place="memory",task="animals"} 0.0' in metrics


def test_keys_are_required_once_one_exists(learner: Learner) -> None:
    read, admin = (add_key(learner.registry, role, role=role) for role in ("read", "admin"))
    row = {"rows": [{"text": "a", "task": "mood"}]}
    try:
        with server(learner) as running:
            for secret, status in ((read, 200), (admin, 200), ("ck_wrong", 401)):
                response = running.client.post("/v1/predict", json=row, headers={"authorization": f"Bearer {secret}"})
                assert response.status_code == status
            assert "key" in error_body(running.client.get("/v1/tasks"), 401)
            assert running.client.get("/healthz").status_code == 200
            assert "may only read" in error_body(
                running.client.post("/v1/refresh", headers={"authorization": f"Bearer {read}"}), 403
            )
            assert running.client.post("/v1/refresh", headers={"authorization": f"Bearer {admin}"}).status_code == 200
            revoke_key(learner.registry, "read")
            head = {"authorization": f"Bearer {read}"}
            wait_until(lambda: running.client.post("/v1/predict", json=row, headers=head).status_code == 401)
    finally:
        forget_keys(learner)


def test_revoking_the_last_key_leaves_a_local_server_closed(learner: Learner) -> None:
    add_key(learner.registry, "only", role="admin")
    try:
        with server(learner) as running:
            revoke_key(learner.registry, "only")
            time.sleep(4 * POLL)
            assert "keys add" in error_body(ask(running, {"text": "a", "task": "mood"}), 401)
            error_body(running.client.post("/v1/refresh"), 401)
        with server(learner) as restarted:
            error_body(restarted.client.get("/v1/tasks"), 401)
    finally:
        forget_keys(learner)


def test_a_public_server_requires_a_key(learner: Learner) -> None:
    with server(learner, local=False) as running:
        error_body(ask(running, {"text": "a"}), 401)


def test_an_empty_registry_can_be_served(bert_folder: Path, tmp_path: Path) -> None:
    with (
        Learner.open(str(bert_folder), tmp_path / "home", device="cpu", dtype="float32") as empty,
        server(empty) as running,
    ):
        assert "nothing is learned" in error_body(running.client.get("/readyz"), 503)
        assert "nothing is learned" in error_body(ask(running, {"text": "a"}), 409)
        assert running.client.get("/v1/tasks").json() == []
