"""Replicated serving: affinity groups of requests, and rolling refresh of replicas."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient, Response

pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")

from ray.serve.schema import ApplicationStatus
from starlette.exceptions import HTTPException
from starlette.requests import Request

from continual.serve import Limits
from continual.serve.core.auth import ApiKeyAuth
from continual.serve.replicated import ReplicaConfig, deployment
from continual.serve.replicated.affinity import affinity_group
from continual.serve.replicated.gateway import create_gateway
from continual.serve.replicated.replica import ReplicaResponse
from continual.serve.replicated.rolling_refresh import RollingRefresh
from registry import Registry, add_key
from registry.errors import RegistryError
from tasks.errors import InputError
from tests.helpers.hostile_bodies import HOSTILE
from tests.helpers.registries import make_registry


def group(path: str, body: Any) -> str:
    return affinity_group(path, json.dumps(body).encode(), groups=32, rows=64)


def rows(*tasks: str | None) -> dict[str, Any]:
    return {"rows": [{"text": "a"} | ({"task": task} if task else {}) for task in tasks]}


def test_a_request_belongs_to_the_group_of_most_of_its_rows() -> None:
    mood, place = group("/v1/predict", rows("mood")), group("/v1/predict", rows("place"))
    assert mood != place
    assert group("/v1/predict", rows("place", "mood", None, "mood")) == mood
    assert group("/v1/completions", {"model": "mood"}) == group("/v1/chat/completions", {"model": "mood"}) == mood


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/predict", rows(None)),
        ("/v1/predict", {"rows": 3}),
        ("/v1/predict", []),
        ("/v1/completions", {}),
        ("/v1/embeddings", {"model": "mood"}),
        ("/v1/tasks", {}),
    ],
)
def test_a_request_without_tasks_has_no_group(path: str, body: Any) -> None:
    assert group(path, body) == ""
    assert affinity_group(path, b"\xff{", groups=32, rows=64) == ""


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/completions"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_has_no_group_and_costs_little(path: str, name: str) -> None:
    start = time.monotonic()
    assert affinity_group(path, HOSTILE[name], groups=32, rows=64) == ""
    assert time.monotonic() - start < 1


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with make_registry(tmp_path_factory.mktemp("keys")) as opened:
        yield opened


@pytest.fixture
def auth(registry: Registry) -> ApiKeyAuth:
    """The keys of a server for its own machine, which has none yet."""
    return ApiKeyAuth(registry, open=True)


class Handle:
    """A fake handle of stale replicas, some of which fail to refresh."""

    def __init__(self, *stale: str, fails: Sequence[str] = ()) -> None:
        self.stale, self.fails = [*stale], fails
        self.refreshing, self.refreshed, self.max_refreshing = 0, list[str](), 0

    def broadcast(self, method: str, *arguments: str) -> "Handle":
        self.call = method, arguments
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        method, arguments = self.call
        if method == "is_stale":
            return [*self.stale, None]
        self.refreshing, (name,) = self.refreshing + 1, arguments
        self.max_refreshing = max(self.max_refreshing, self.refreshing)
        await asyncio.sleep(0)
        self.refreshing -= 1
        self.refreshed.append(name)
        return [RuntimeError(f"{name} died") if name in self.fails else True, False]


def test_replicas_refresh_in_turn_despite_failures(auth: ApiKeyAuth) -> None:
    async def refresh_twice() -> list[bool | BaseException]:
        rolling_refresh = RollingRefresh(handle, auth, poll=1)
        both = (rolling_refresh.refresh_all(), rolling_refresh.refresh_all())
        return list(await asyncio.gather(*both, return_exceptions=True))

    handle = Handle("a", "b", "c", fails=["b"])
    assert [str(error) for error in asyncio.run(refresh_twice())] == ["b died"] * 2, (
        "the failure is raised after all had their turn"
    )
    assert handle.refreshed == ["a", "b", "c"] * 2
    assert handle.max_refreshing == 1


def test_up_to_date_replicas_are_not_refreshed(auth: ApiKeyAuth) -> None:
    assert asyncio.run(RollingRefresh(Handle(), auth, poll=1).refresh_all()) is False


def test_the_gateway_takes_up_new_keys(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry:
        auth, request = ApiKeyAuth(registry, open=True), Request({"type": "http", "headers": []})
        add_key(registry, "first", role="read")
        auth.check(request, "read")
        asyncio.run(RollingRefresh(Handle(), auth, poll=1).refresh_all())
        with pytest.raises(HTTPException, match="no good key"):
            auth.check(request, "read")


def test_a_replica_that_hangs_is_not_waited_for(auth: ApiKeyAuth) -> None:
    class Hanging(Handle):
        async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
            if self.call[0] == "refresh" and self.call[1] == ("b",):
                assert timeout_s < float("inf")
                raise TimeoutError("too long")  # as Ray Serve does then
            return await super().results_async(timeout_s=timeout_s, return_exceptions=return_exceptions)

    handle = Hanging("a", "b", "c")
    with pytest.raises(TimeoutError):
        asyncio.run(RollingRefresh(handle, auth, poll=1).refresh_all())
    assert handle.refreshed == ["a", "c"]


@pytest.mark.parametrize(
    ("status", "fingerprints", "message"),
    [
        ("RUNNING", ["a" * 20, "b" * 20], f"fingerprints {'a' * 12}, {'b' * 12}"),
        ("DEPLOY_FAILED", [], "no replica could begin: InputError: why"),
        ("DEPLOYING", [], "2 replicas were not ready within 0.01 s"),
        ("RUNNING", ["a" * 20], "2 replicas were not ready"),
    ],
)
def test_replicas_that_do_not_become_ready_are_an_error(
    status: str, fingerprints: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ready:
        def broadcast(self, method: str) -> "Ready":
            return self

        def results(self, *, timeout_s: float) -> list[str]:
            return fingerprints

    application = SimpleNamespace(status=ApplicationStatus[status], message="Traceback\nInputError: why\nmore")
    monkeypatch.setattr(deployment, "STARTUP_TIMEOUT", 0.01)
    monkeypatch.setattr("ray.serve.run_many", lambda targets, **options: [Ready()])
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={"two": application}))
    with pytest.raises(InputError, match=message):
        deployment._start(object(), ReplicaConfig(count=2, cpus=1, gpus=0, address=None, name="two"))


def gateway(handle: Any, auth: ApiKeyAuth) -> AsyncClient:
    """Return a client of a gateway."""
    app = create_gateway(handle, auth, local=False, limits=Limits(), poll=1, groups=16)
    return AsyncClient(transport=ASGITransport(app), base_url="http://gateway")


@pytest.mark.parametrize(
    ("results", "status", "message"),
    [
        ([None, RegistryError("the database is away")], 503, "cannot be read now"),
        ([TimeoutError()], 504, "did not answer in time"),
        ([None, None], 200, '{"changed":false}'),
        (["a", None], 200, '{"changed":true}'),
    ],
)
def test_a_refresh_covers_all_replicas(auth: ApiKeyAuth, results: list[Any], status: int, message: str) -> None:
    class RefreshHandle(Handle):
        response = property(lambda self: SimpleNamespace(remote=self._response))

        async def _response(self, scope: Any, body: bytes) -> ReplicaResponse:
            return ReplicaResponse("a", 200, [], b'{"changed": false}')

        async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
            return results if self.call[0] == "is_stale" else [True]

    async def post_refresh() -> Response:
        async with gateway(RefreshHandle(), auth) as client:
            return await client.post("/v1/refresh")

    answer = asyncio.run(post_refresh())
    assert (answer.status_code, message in answer.text) == (status, True), answer.text


@pytest.mark.parametrize(("path", "status"), [("/v1/predict", 401), ("/metrics", 401), ("/healthz", 200)])
def test_the_gateway_reads_no_body_without_a_key(registry: Registry, path: str, status: int) -> None:
    """An open path is forwarded without its body, whatever the header `host` says."""

    class Messages:
        async def __anext__(self) -> list[dict[str, Any]]:
            return [{"type": "http.response.start", "status": 200, "headers": []}, {"type": "http.response.body"}]

    class HealthHandle(Handle):
        def options(self, *, stream: bool, multiplexed_model_id: str) -> Any:
            return SimpleNamespace(stream_response=SimpleNamespace(remote=self.respond))

        def respond(self, scope: Any, body: bytes) -> Messages:
            assert (scope["path"], body) == ("/healthz", b"")
            return Messages()

    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("the body is read")
        yield b""

    async def post() -> Response:
        async with gateway(HealthHandle(), ApiKeyAuth(registry, open=False)) as client:
            return await client.post(path, content=endless(), headers={"host": "a/metrics?"})

    assert asyncio.run(post()).status_code == status
