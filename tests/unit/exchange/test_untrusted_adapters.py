"""Adapters from anybody: whatever their files hold, importing them ends soon and with a message."""

import os
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch

from continual.deltas import Head
from continual.deltas.peft_format import MODULE_PREFIX, PeftAdapter
from continual.deltas.peft_patterns import match_pattern
from continual.errors import ExchangeError
from continual.exchange import from_peft
from continual.exchange.files import (
    ADAPTER,
    CONFIG,
    HEAD,
    HEAD_METADATA,
    ExportOrigin,
    read_adapter,
    read_head,
    write_adapter,
    write_head,
)
from tests.helpers.tiny_tasks import tiny_backbone

MODULE = f"{MODULE_PREFIX}encoder.layer.0.attention.self.query"
SOUND: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"]}
ORIGIN = ExportOrigin(backbone="f00d", delta="sst2@1", digest="0")
EVIL = r"(([a-z.0-9_]+)+)+\1\1[^a-z.0-9_]"  # takes a time that doubles with every character


def adapter(value: float = 1.0, **config: Any) -> PeftAdapter:
    backbone = tiny_backbone("bert")
    size = backbone.hidden_size
    tensors = {f"{MODULE}.lora_A.weight": torch.ones(2, size), f"{MODULE}.lora_B.weight": torch.full((size, 2), value)}
    return PeftAdapter(SOUND | config, tensors)


def test_a_sound_adapter_is_read(tmp_path: Path) -> None:
    write_adapter(tmp_path, adapter(rank_pattern={"key": 3}, alpha_pattern={"key": 0.5}), ORIGIN)
    read, origin = read_adapter(tmp_path)
    assert (read.config["r"], origin) == (2, ORIGIN)


@pytest.mark.parametrize(
    "changed",
    [
        {"r": "many"},
        {"r": 10**23},
        {"r": 0},
        {"r": None},
        {"lora_alpha": 1e300},
        {"lora_alpha": [1]},
        {"rank_pattern": ["query"]},
        {"rank_pattern": {"query": -1}},
        {"alpha_pattern": {"query": 1e300}},
        {"target_modules": 5},
        {"modules_to_save": 5},
        {"layers_to_transform": ["first"]},
        {"layers_pattern": {}},
        {"peft_type": ["LORA"]},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": "x"},
        {"peft_type": "PREFIX_TUNING"},
    ],
    ids=str,
)
def test_wrong_types_and_absurd_numbers_of_the_config_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_adapter(tmp_path, adapter(**changed), ORIGIN)
    with pytest.raises(ExchangeError, match=CONFIG):
        read_adapter(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000 + "1" + "}" * 100_000, "[1]", "{", "\x00"])
def test_json_that_is_none_or_nested_too_deeply_is_refused(tmp_path: Path, text: str) -> None:
    write_adapter(tmp_path, adapter(), ORIGIN)
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(ExchangeError, match=f"{CONFIG} cannot be read"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("name", [CONFIG, ADAPTER, HEAD, HEAD_METADATA])
def test_pipes_devices_and_folders_are_no_files(tmp_path: Path, name: str) -> None:
    """A pipe would be waited for, and a device never ends."""
    write_adapter(tmp_path, adapter(), ORIGIN)
    write_head(tmp_path, Head(torch.zeros(2, 8), torch.zeros(2), ("a", "b"), "mean"))
    file = tmp_path / name
    for target in (None, "/dev/zero", "/"):
        file.unlink()
        file.symlink_to(target) if target else os.mkfifo(file)
        with pytest.raises(ExchangeError, match=f"{name} cannot be read: a (device or a pipe|folder), not a file"):
            read_adapter(tmp_path), read_head(tmp_path, hidden_size=8)


@pytest.mark.parametrize("value", [3e38, -1e5, float("inf"), float("nan")])
def test_values_that_no_training_gives_are_refused(tmp_path: Path, value: float) -> None:
    write_adapter(tmp_path, adapter(value), ORIGIN)
    with pytest.raises(ExchangeError, match=f"{ADAPTER} holds values .*lora_B"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {EVIL: 3}},
        {"alpha_pattern": {EVIL: 3}},
        {"target_modules": EVIL},
        {"exclude_modules": EVIL},
        {"modules_to_save": [EVIL]},
        {"layers_to_transform": [0], "layers_pattern": EVIL},
    ],
    ids=str,
)
def test_patterns_are_matched_in_bounded_time(config: dict[str, Any]) -> None:
    start = monotonic()
    with suppress(ExchangeError):  # some of them are answered at once
        from_peft(tiny_backbone("bert"), adapter(**config))
    assert monotonic() - start < 60


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "a" * 10_000])
def test_patterns_that_are_none_are_refused(pattern: str) -> None:
    with pytest.raises(ExchangeError, match="the adapter's pattern"):
        from_peft(tiny_backbone("bert"), adapter(rank_pattern={pattern: 3}))


def test_a_pattern_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("continual.deltas.peft_patterns.MATCH_SECONDS", 0.05)
    with pytest.raises(ExchangeError, match="was not matched"):
        match_pattern(EVIL, "a" * 5000, pattern=EVIL)
