"""A stream on one backbone in 8 and 4 bits through the command line: separate backbones."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.cli import CliResult, CliRunner
from tests.helpers.tiny_tasks import text_of, write_task

pytest.importorskip("bitsandbytes", reason="bitsandbytes (extra `quantized`) is not installed")
from continual import Learner
from continual.settings import resolve_locations
from registry import Registry
from tasks import read_stream
from tests.helpers.quantized_backbones import checkpoint_folder

TASKS = {"8": ("mood", "place"), "4": ("mood",)}  # by the bits that they are learned in


def write_stream(folder: Path, bits: str = "8", **changes: Any) -> Path:
    content = {
        "name": f"in{bits}",
        "backbone": str(checkpoint_folder("bert")),
        "method": {"name": "lora", "rank": 2},
        "budget": {"epochs": 2, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 16},
        "tasks": [write_task(folder, task) for task in TASKS[bits]],
    }
    file = folder / f"in{bits}.yaml"
    file.write_text(yaml.safe_dump(content | changes, sort_keys=False), encoding="utf-8")
    return file


def _registry(folder: Path) -> Registry:
    places = resolve_locations(folder / "home")
    return Registry.open(places.registry, places.blobs)


def good(result: CliResult) -> Any:
    assert result.code == 0, result.err
    return result.json


def test_a_stream_in_8_and_in_4_bits(cli: CliRunner, tmp_path: Path) -> None:
    questions = tmp_path / "asked.txt"
    questions.write_text("".join(f"{text_of('mood', 'bad', random.Random(i))}\n" for i in range(4)))
    streams = {bits: write_stream(tmp_path, bits) for bits in TASKS}
    for bits, stream in streams.items():
        with Learner.open(
            str(checkpoint_folder("bert")), _registry(tmp_path), bits=int(bits)
        ) as learner:  # MLflow takes longest
            assert learner.run(read_stream(stream)) == {}
        report = good(cli("report", f"in{bits}", "--json"))
        assert report["backbone"] == f"{checkpoint_folder('bert')}@{bits}bit"
        assert min(report["oracle"]["matrix"][-1]) > 0.7
        assert [row["changed"] for row in good(cli("audit", str(stream), "--bits", bits, "--json"))] == [0] * len(
            TASKS[bits]
        )
        lines = cli("predict", str(questions), "--task", "mood", "--bits", bits).out.splitlines()
        assert [json.loads(line)["label"] for line in lines].count("bad") >= 3
    deltas = good(cli("deltas", "--json"))
    assert sorted(row["delta"] for row in deltas) == ["mood@1", "mood@2", "place@1"]
    assert good(cli("verify", "--json")) == []

    result = cli("predict", str(questions))
    assert result.code == 2
    assert "several backbones are registered" in result.err
    result = cli("predict", str(questions), "--backbone", str(checkpoint_folder("bert")))
    assert result.code == 2
    assert "nothing has been learned on backbone" in result.err
    result = cli("export", "mood@1", str(tmp_path / "out"), "--format", "transformers", "--bits", "8")
    assert result.code == 2
    assert "quantised" in result.err


@pytest.mark.parametrize("method", ["full", "dora", "masking"])
def test_a_method_that_changes_weights_is_refused_before_training(cli: CliRunner, tmp_path: Path, method: str) -> None:
    result = cli("run", str(write_stream(tmp_path, method={"name": method})), "--bits", "8")
    assert result.code == 2
    assert "changes the weight of layer.0.attn.q itself, which is quantised" in result.err
    assert good(cli("deltas", "--json")) == []
