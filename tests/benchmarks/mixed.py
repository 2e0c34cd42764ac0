"""Speed of mixed batches of many tasks, relative to the frozen base and to PEFT's two ways.

    python -m tests.benchmarks.mixed [--width 384] [--tokens 16] [--batch 32] [--registered 64] > mixed.json

Variants, timed in turn in one process on a random BERT after a warm-up round; printed are medians of the frozen base's
time divided by the variant's in the same round. `split`: the base, task after task · `ours`: every row through its
task's delta · `five`: the same with five methods · `adapter_names`: PEFT's mixed batch · `set_adapter`: PEFT, task
after task. LoRA of rank 8 on query and value; the five are lora, adapter, prefix, ia3 and bitfit. Tasks are uniform,
Zipf-distributed with exponent 1.5, or one for all rows; rows come in random order. Before the timing, variants that
compute the same are compared, to 1e-4.
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
Variant = Callable[[], Tensor]


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
    """Return a delta with random values of the size of trained ones."""
    settings = method_settings(Method(name=method, **(LORA if method == "lora" else {})))
    draw = torch.Generator().manual_seed(seed)
    fresh = init_values(backbone, settings, seed=seed)
    values = {key: value + 0.02 * torch.randn(value.shape, generator=draw) for key, value in fresh.items()}
    head = Head(torch.randn(2, backbone.hidden_size), torch.zeros(2), ("no", "yes"), "mean")
    return Delta(method, settings, backbone.fingerprint, values, head)


def owners(kind: str, tasks: int, batch: int, draw: np.random.RandomState) -> list[int]:
    """Return each row's task, in random order."""
    if kind == "identical":
        return [0] * batch
    share = np.arange(1, tasks + 1, dtype=float) ** -(ZIPF if kind == "zipf" else 0)
    if kind == "zipf":
        return [int(task) for task in draw.choice(tasks, batch, p=share / share.sum())]
    return [int(task) for task in draw.permutation(np.arange(batch) % tasks)]


class BatchVariants:
    """Every way to compute one batch; each returns the states of its rows in the order of the batch."""

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
        """Return one of a few deltas: the results depend on how many are registered, not on their values."""
        deltas = self._deltas[method]
        return deltas[number % len(deltas)]

    def base(self) -> Tensor:
        return self._backbone.hidden_states(self._inputs)

    def split(self, tasks: Sequence[int]) -> Tensor:
        states = torch.empty(0)
        for task in dict.fromkeys(tasks):
            states = self._backbone.hidden_states(self._take([i for i, owner in enumerate(tasks) if owner == task]))
        return states

    def mixed(self, bank: Bank, tasks: Sequence[int]) -> Tensor:
        order, mixture = bank.mixed_batch([str(task) for task in tasks])
        with attached(self._backbone, mixture):
            states = self._backbone.hidden_states(self._take(order))
        back = torch.empty_like(states)
        back[order] = states
        return back

    def one_by_one(self, tasks: Sequence[int], method: Callable[[int], str]) -> Tensor:
        """Compute the states task by task with one attached delta: the reference of all variants."""
        states = torch.empty(*self._inputs["input_ids"].shape, self._backbone.hidden_size, device=self._backbone.device)
        for task in dict.fromkeys(tasks):
            rows = [i for i, owner in enumerate(tasks) if owner == task]
            with attached(self._backbone, self._delta(method(task), task).to(self._backbone.device)):
                states[rows] = self._backbone.hidden_states(self._take(rows))
        return states

    def adapter_names(self, tasks: Sequence[int]) -> Tensor:
        states: Tensor = self._peft(**self._inputs, adapter_names=[f"t{task}" for task in tasks]).last_hidden_state
        return states

    def set_adapter(self, tasks: Sequence[int]) -> Tensor:
        states = torch.empty(*self._inputs["input_ids"].shape, self._backbone.hidden_size, device=self._backbone.device)
        for task in dict.fromkeys(tasks):
            rows = [i for i, owner in enumerate(tasks) if owner == task]
            self._peft.set_adapter(f"t{task}")
            states[rows] = self._peft(**self._take(rows)).last_hidden_state
        return states

    def with_peft(self, tasks: int) -> None:
        """Create PEFT's model with the adapters of so many tasks."""
        import peft

        for task in range(tasks):
            adapter, name = to_peft(self._backbone, self._delta("lora", task)), f"t{task}"
            config = peft.LoraConfig(**{key: adapter.config[key] for key in ("r", "lora_alpha", "target_modules")})
            if task == 0:
                self._peft = peft.get_peft_model(deepcopy(self._backbone.model), config, adapter_name=name).eval()
            else:
                self._peft.add_adapter(name, config)
            peft.set_peft_model_state_dict(self._peft, adapter.tensors, adapter_name=name)

    def all(self, tasks: Sequence[int]) -> dict[str, Variant]:
        return {
            "base": self.base,
            "split": lambda: self.split(tasks),
            "ours": lambda: self.mixed(self._lora, tasks),
            "five": lambda: self.mixed(self._five, tasks),
            "adapter_names": lambda: self.adapter_names(tasks),
            "set_adapter": lambda: self.set_adapter(tasks),
        }

    def check(self, tasks: Sequence[int]) -> None:
        """Raise AssertionError if variants that compute the same differ."""
        same = self.one_by_one(tasks, lambda task: "lora")
        for mixed_states in (self.mixed(self._lora, tasks), self.adapter_names(tasks), self.set_adapter(tasks)):
            torch.testing.assert_close(mixed_states, same, rtol=1e-4, atol=1e-4)
        five = self.one_by_one(tasks, lambda task: FIVE[task % len(FIVE)])
        torch.testing.assert_close(self.mixed(self._five, tasks), five, rtol=1e-4, atol=1e-4)

    def _take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in self._inputs.items()}


def timed(variants: dict[str, Variant], device: torch.device, repeats: int) -> dict[str, float]:
    """Return the median ratio of the base's time to each variant's in the same round, and the base's milliseconds."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round in range(repeats + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round:
                seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: median(base / elapsed for base, elapsed in zip(seconds["base"], several, strict=True))
        for name, several in seconds.items()
    }
    return {**ratios, "base_ms": 1000 * median(seconds["base"])}


@torch.inference_mode()
def measured(variants: BatchVariants, arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    cells, draw = [], np.random.RandomState(0)
    largest = max(arguments.tasks)
    variants.with_peft(largest)
    for tasks in arguments.tasks:
        for kind in arguments.shares:
            row_tasks = owners(kind, tasks, arguments.batch, draw)
            variants.check(row_tasks)
            timings = timed(variants.all(row_tasks), device, arguments.repeats)
            cell = {"tasks": tasks, "shares": kind, "deltas_in_batch": len(set(row_tasks)), **timings}
            say(
                " ".join(
                    f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in cell.items()
                )
            )
            cells.append(cell)
    return cells


def main() -> None:
    """Print one JSON document."""
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
    arguments = parser.parse_args()
    quieten()
    backbone = random_bert(arguments.width, arguments.layers)
    variants = BatchVariants(
        backbone, tokens=arguments.tokens, batch=arguments.batch, registered=max(arguments.registered, *arguments.tasks)
    )
    about = {"device": str(backbone.device), "threads": torch.get_num_threads(), **vars(arguments)}
    print(json.dumps({**about, "cells": measured(variants, arguments, backbone.device)}, indent=1))


if __name__ == "__main__":
    main()
