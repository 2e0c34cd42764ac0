"""How fast is one batch of rows of many tasks? Beside the frozen base, and beside PEFT's two ways.

    python -m tests.benchmarks.mixed [--width 384] [--tokens 16] [--batch 32] [--registered 64] > mixed.json

Arms, timed in turn in one process on a random BERT, after one round that does not count; what is told are medians of
the frozen base's time through the arm's, in the same round. `split`: the base, task after task · `ours`: every row
through its task's delta · `five`: the same with five methods · `adapter_names`: PEFT's mixed batch · `set_adapter`:
PEFT, task after task. LoRA of rank 8 on query and value; the five are lora, adapter, prefix, ia3 and bitfit. Tasks are
drawn evenly, by Zipf's law of exponent 1.5, or all rows are of one task; rows come in random order. Before anything is
timed, all arms that compute the same are compared, to 1e-4.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from continual.backbones.backbone import Backbone, freeze
from continual.deltas import Bank, Delta, Head, attached, init_values, method_settings
from continual.exchange import to_peft
from tasks import Method
from tests.benchmarks.run_log import quieten, say
from tests.helpers.tiny_models import word_pieces

FIVE = ("lora", "adapter", "prefix", "ia3", "bitfit")
LORA = {"rank": 8, "sites": ("attn.q", "attn.v")}
ZIPF = 1.5
Arm = Callable[[], Tensor]


def random_bert(width: int, layers: int, *, dropout: float = 0.1) -> Backbone:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return freeze(BertModel(config, add_pooling_layer=False), word_pieces(), name="random-bert")


def learned(backbone: Backbone, method: str, seed: int) -> Delta:
    """A delta whose values are as if it had learned something."""
    settings = method_settings(Method(name=method, **(LORA if method == "lora" else {})))
    draw = torch.Generator().manual_seed(seed)
    fresh = init_values(backbone, settings, seed=seed)
    values = {key: value + 0.02 * torch.randn(value.shape, generator=draw) for key, value in fresh.items()}
    head = Head(torch.randn(2, backbone.hidden_size), torch.zeros(2), ("no", "yes"), "mean")
    return Delta(method, settings, backbone.fingerprint, values, head)


def owners(kind: str, tasks: int, batch: int, draw: np.random.RandomState) -> list[int]:
    """The task of each row, in random order."""
    if kind == "identical":
        return [0] * batch
    share = np.arange(1, tasks + 1, dtype=float) ** -(ZIPF if kind == "zipf" else 0)
    if kind == "zipf":
        return [int(task) for task in draw.choice(tasks, batch, p=share / share.sum())]
    return [int(task) for task in draw.permutation(np.arange(batch) % tasks)]


class Arms:
    """Every way to read one batch, each giving the states of its rows in the order of the batch."""

    def __init__(self, backbone: Backbone, *, tokens: int, batch: int, registered: int) -> None:
        self._backbone = backbone
        shape, device = (batch, tokens), backbone.device
        self._inputs = {
            "input_ids": torch.randint(5, 1000, shape, device=device),
            "attention_mask": torch.ones(shape, dtype=torch.long, device=device),
        }
        self._deltas = {method: [learned(backbone, method, seed) for seed in range(8)] for method in FIVE}
        self._lora, self._five = Bank(backbone, slots=registered), Bank(backbone, slots=registered)
        for number in range(registered):
            self._lora.put(str(number), self._delta("lora", number))
            self._five.put(str(number), self._delta(FIVE[number % len(FIVE)], number))
        self._peft: Any = None

    def _delta(self, method: str, number: int) -> Delta:
        """Few are drawn: what counts is how many are there."""
        own = self._deltas[method]
        return own[number % len(own)]

    def base(self) -> Tensor:
        return self._backbone.hidden_states(self._inputs)

    def split(self, tasks: Sequence[int]) -> Tensor:
        found = torch.empty(0)
        for task in dict.fromkeys(tasks):
            found = self._backbone.hidden_states(self._take([i for i, own in enumerate(tasks) if own == task]))
        return found

    def mixed(self, bank: Bank, tasks: Sequence[int]) -> Tensor:
        order, mixture = bank.mixed_batch([str(task) for task in tasks])
        with attached(self._backbone, mixture):
            found = self._backbone.hidden_states(self._take(order))
        back = torch.empty_like(found)
        back[order] = found
        return back

    def one_by_one(self, tasks: Sequence[int], method: Callable[[int], str]) -> Tensor:
        """The single path, which all others are compared with."""
        found = torch.empty(*self._inputs["input_ids"].shape, self._backbone.hidden_size, device=self._backbone.device)
        for task in dict.fromkeys(tasks):
            rows = [i for i, own in enumerate(tasks) if own == task]
            with attached(self._backbone, self._delta(method(task), task).to(self._backbone.device)):
                found[rows] = self._backbone.hidden_states(self._take(rows))
        return found

    def adapter_names(self, tasks: Sequence[int]) -> Tensor:
        found: Tensor = self._peft(**self._inputs, adapter_names=[f"t{task}" for task in tasks]).last_hidden_state
        return found

    def set_adapter(self, tasks: Sequence[int]) -> Tensor:
        found = torch.empty(*self._inputs["input_ids"].shape, self._backbone.hidden_size, device=self._backbone.device)
        for task in dict.fromkeys(tasks):
            rows = [i for i, own in enumerate(tasks) if own == task]
            self._peft.set_adapter(f"t{task}")
            found[rows] = self._peft(**self._take(rows)).last_hidden_state
        return found

    def with_peft(self, tasks: int) -> None:
        """PEFT's model with the adapters of so many tasks."""
        import peft

        for task in range(tasks):
            adapter, name = to_peft(self._backbone, self._delta("lora", task)), f"t{task}"
            config = peft.LoraConfig(**{key: adapter.config[key] for key in ("r", "lora_alpha", "target_modules")})
            if task == 0:
                self._peft = peft.get_peft_model(deepcopy(self._backbone.model), config, adapter_name=name).eval()
            else:
                self._peft.add_adapter(name, config)
            peft.set_peft_model_state_dict(self._peft, adapter.tensors, adapter_name=name)

    def all(self, tasks: Sequence[int]) -> dict[str, Arm]:
        return {
            "base": self.base,
            "split": lambda: self.split(tasks),
            "ours": lambda: self.mixed(self._lora, tasks),
            "five": lambda: self.mixed(self._five, tasks),
            "adapter_names": lambda: self.adapter_names(tasks),
            "set_adapter": lambda: self.set_adapter(tasks),
        }

    def check(self, tasks: Sequence[int]) -> None:
        """Raises AssertionError where arms that compute the same do not."""
        same = self.one_by_one(tasks, lambda task: "lora")
        for own in (self.mixed(self._lora, tasks), self.adapter_names(tasks), self.set_adapter(tasks)):
            torch.testing.assert_close(own, same, rtol=1e-4, atol=1e-4)
        five = self.one_by_one(tasks, lambda task: FIVE[task % len(FIVE)])
        torch.testing.assert_close(self.mixed(self._five, tasks), five, rtol=1e-4, atol=1e-4)

    def _take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in self._inputs.items()}


def timed(arms: dict[str, Arm], device: torch.device, repeats: int) -> dict[str, float]:
    """Median ratio of the base's time to each arm's in the same round, and the base's time in milliseconds."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round in range(repeats + 1):
        for name, arm in arms.items():
            began = time.perf_counter()
            arm()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round:
                seconds[name].append(time.perf_counter() - began)
    ratios = {
        name: median(base / own for base, own in zip(seconds["base"], several, strict=True))
        for name, several in seconds.items()
    }
    return {**ratios, "base_ms": 1000 * median(seconds["base"])}


@torch.inference_mode()
def measured(arms: Arms, given: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    cells, draw = [], np.random.RandomState(0)
    largest = max(given.tasks)
    arms.with_peft(largest)
    for tasks in given.tasks:
        for kind in given.shares:
            own = owners(kind, tasks, given.batch, draw)
            arms.check(own)
            found = timed(arms.all(own), device, given.repeats)
            cell = {"tasks": tasks, "shares": kind, "deltas_in_batch": len(set(own)), **found}
            say(
                " ".join(
                    f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in cell.items()
                )
            )
            cells.append(cell)
    return cells


def main() -> None:
    """Prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "width": 384,
        "layers": 6,
        "tokens": 16,
        "batch": 32,
        "registered": 64,
        "repeats": 25,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--tasks", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4, 8, 16, 32, 64]
    )
    parser.add_argument("--shares", type=lambda text: text.split(","), default=["uniform", "zipf", "identical"])
    given = parser.parse_args()
    quieten()
    backbone = random_bert(given.width, given.layers)
    arms = Arms(backbone, tokens=given.tokens, batch=given.batch, registered=max(given.registered, *given.tasks))
    about = {"device": str(backbone.device), "threads": torch.get_num_threads(), **vars(given)}
    print(json.dumps({**about, "cells": measured(arms, given, backbone.device)}, indent=1))


if __name__ == "__main__":
    main()
