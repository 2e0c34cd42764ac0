"""The plugin of vLLM, against a stand-in written from vLLM's documented interface, and vLLM itself if it is there."""

import asyncio
import importlib.util
import json
import sys
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from continual import Learner
from continual.backbones.backbone import load_backbone
from continual.exchange import vllm_resolver
from continual.exchange.vllm_resolver import ChampionResolver, is_model, register, resolver_from_environment
from registry import Registry
from tasks import Budget, Method, Stream, TaskSpec
from tests.helpers.paths import ROOT
from tests.helpers.tiny_tasks import save_backbone, tiny_backbone, write_task

WRITES = {"kind": "generation", "target": "label", "label": None}


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


@dataclass
class ResolverRegistry:
    resolvers: dict[str, LoRAResolver]

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        self.resolvers[resolver_name] = resolver


@pytest.fixture
def resolvers(monkeypatch: pytest.MonkeyPatch) -> dict[str, LoRAResolver]:
    """Put a stand-in for vLLM in place; return the resolvers that are registered with it."""
    registry = ResolverRegistry({})
    request, resolver = ModuleType("vllm.lora.request"), ModuleType("vllm.lora.resolver")
    request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    resolver.LoRAResolver, resolver.LoRAResolverRegistry = LoRAResolver, registry  # type: ignore[attr-defined]
    for module in (ModuleType("vllm"), ModuleType("vllm.lora"), request, resolver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return registry.resolvers


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_backbone(tiny_backbone("llama"), tmp_path / "base")


@pytest.fixture
def learner(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Learner]:
    for name in ("CONTINUAL_REGISTRY_URL", "CONTINUAL_BLOBS_URL", "CONTINUAL_LORA_CACHE", "CONTINUAL_LORA_RANK"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("CONTINUAL_HOME", str(home))
    with Registry.open(f"sqlite:///{home / 'registry.db'}", str(home / "blobs")) as registry:
        yield Learner(load_backbone(base, device="cpu"), registry)


def learn(learner: Learner, folder: Path, task: str = "mood", **changes: Any) -> str:
    spec = write_task(folder, task, train=24, validation=8) | WRITES | {"budget": {"epochs": 0}} | changes
    parsed = TaskSpec.model_validate({key: value for key, value in spec.items() if value is not None})
    stream = Stream(name=task, tasks=(parsed,), folder=folder, method=Method(name="lora"), budget=Budget(max_length=16))
    return learner.learn(stream)


def resolve(resolver: LoRAResolver, base: Path | str, name: str) -> LoRARequest | None:
    return asyncio.run(resolver.resolve_lora(str(base), name))


def test_champions_are_resolved_and_new_versions_noticed(
    learner: Learner, base: Path, tmp_path: Path, resolvers: dict[str, LoRAResolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert learn(learner, tmp_path) == "mood@1"
    register()
    (resolver,) = resolvers.values()
    assert isinstance(resolver, LoRAResolver)
    first = resolve(resolver, base, "mood")
    assert first
    assert (first.lora_name, Path(first.lora_path).parent) == ("mood", tmp_path / "home" / "vllm-adapters")
    config = json.loads((Path(first.lora_path) / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", str(base))
    with monkeypatch.context() as patch:
        patch.setattr(vllm_resolver.ChampionResolver, "_convert", None)
        assert resolve(resolver, base, "mood") == first, "converted once"
    assert resolve(resolver, base, "moood") is None
    assert resolve(resolver, base, "../mood") is None
    assert resolve(resolver, "meta-llama/Llama-3.2-1B", "mood") is None
    assert learn(learner, tmp_path, method={"name": "lora", "rank": 2}) == "mood@2"
    second = resolve(resolver, base, "mood")
    assert second
    assert second.lora_path != first.lora_path
    assert second.lora_int_id != first.lora_int_id
    assert 0 < second.lora_int_id < 2**31
    by_version = resolve(resolver, base, "mood@1")
    assert by_version
    assert (by_version.lora_path, by_version.lora_int_id) == (first.lora_path, first.lora_int_id)
    assert not list((tmp_path / "home" / "vllm-adapters").glob(".draft-*"))


def test_a_delta_that_cannot_be_served_is_logged(
    learner: Learner, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learn(learner, tmp_path, method="prefix")
    resolver = resolver_from_environment({"CONTINUAL_HOME": str(tmp_path / "home")})
    assert resolver
    assert resolver.find(str(base), "mood") is None
    assert "'mood' cannot be served" in caplog.text
    assert not list((tmp_path / "home" / "vllm-adapters").iterdir())


def test_two_requests_convert_once(learner: Learner, base: Path, tmp_path: Path) -> None:
    learn(learner, tmp_path)
    environment = {"CONTINUAL_HOME": str(tmp_path / "home"), "CONTINUAL_LORA_RANK": "4"}
    resolver = resolver_from_environment(environment | {"CONTINUAL_LORA_CACHE": str(tmp_path / "cache")})
    assert resolver
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda name: resolver.find(str(base), name), ("mood", "mood@1"))
    assert one == other
    assert one
    assert [*(tmp_path / "cache").iterdir()] == [one.folder]
    assert one.folder.name.endswith("-rank4")
    assert json.loads((one.folder / "adapter_config.json").read_text())["r"] <= 4
    before = one.folder.stat()
    resolver._convert(learner.registry, str(base), "mood@1", one.folder)
    assert one.folder.stat() == before, "another process was first"
    assert [*(tmp_path / "cache").iterdir()] == [one.folder]


def test_without_a_named_registry_nothing_is_registered(
    resolvers: dict[str, LoRAResolver],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("CONTINUAL_HOME", "CONTINUAL_REGISTRY_URL"):
        monkeypatch.delenv(name, raising=False)
    register()
    assert not resolvers
    monkeypatch.setenv("CONTINUAL_HOME", str(tmp_path / "none"))
    register()
    assert resolve(resolvers["continual"], "a/model", "mood") is None
    assert "there is no registry at" in caplog.text
    assert not (tmp_path / "none").exists()


def test_models_are_the_same_by_name_or_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert is_model(str(tmp_path), str(tmp_path / "link"))
    assert is_model("org/model@8bit", "org/model")
    assert not is_model("org/model", "org/other")


def test_the_entry_point_is_the_function_that_registers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"]["vllm.general_plugins"].items()
    assert EntryPoint(name, value, "vllm.general_plugins").load() is register


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_itself_takes_the_resolver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vllm.lora.resolver import LoRAResolverRegistry

    monkeypatch.setenv("CONTINUAL_HOME", str(tmp_path))
    register()
    assert isinstance(LoRAResolverRegistry.get_resolver("continual"), ChampionResolver)
