"""The bank of deltas on a device: slots, eviction, shared stacks and the cache that reads deltas."""

from collections.abc import Sequence
from dataclasses import replace
from threading import Event

import pytest
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Bank, Delta, attached
from continual.errors import DeltaError
from continual.features.tokens import pad, tokenize
from continual.inference.delta_cache import DeltaCache
from registry.errors import BlobError
from tests.helpers.tiny_tasks import perturbed_delta

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave", "lemon one"]


@torch.no_grad()
def states(backbone: Backbone, bank: Bank | DeltaCache, names: Sequence[str]) -> Tensor:
    """Compute the texts' states [B, T, D] through the deltas of these names, zero at padding."""
    order, mixture = bank.mixed_batch(names)
    batch = pad(backbone, tokenize(backbone, TEXTS, max_length=24), order)
    with attached(backbone, mixture):
        hidden = backbone.hidden_states(batch) * batch["attention_mask"].unsqueeze(-1)
    return hidden[torch.tensor(order).argsort()]


@torch.no_grad()
def alone(backbone: Backbone, deltas: Sequence[Delta]) -> Tensor:
    batch = pad(backbone, tokenize(backbone, TEXTS, max_length=24), range(len(TEXTS)))
    rows = []
    for row, delta in enumerate(deltas):
        with attached(backbone, delta):
            rows.append((backbone.hidden_states(batch) * batch["attention_mask"].unsqueeze(-1))[row])
    return torch.stack(rows)


def close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_more_deltas_than_slots_are_evicted_and_loaded_again(bert: Backbone) -> None:
    deltas = [perturbed_delta(bert, "lora", rank=1 + seed % 9, seed=seed) for seed in range(40)]
    bank = Bank(bert, slots=4)
    for begin in range(0, 40, 4):
        names = [str(begin + row) for row in range(4)]
        for name in names:
            bank.put(name, deltas[int(name)])
        assert len(bank) == 4
        assert close(states(bert, bank, names), alone(bert, deltas[begin : begin + 4]))


def test_the_least_recently_used_delta_is_evicted(bert: Backbone) -> None:
    bank, deltas = Bank(bert, slots=2), {name: perturbed_delta(bert, "ia3", seed=i) for i, name in enumerate("abc")}
    bank.put("a", deltas["a"])
    bank.put("b", deltas["b"])
    bank.mixed_batch(["a"])
    bank.put("c", deltas["c"])
    assert ("a" in bank, "b" in bank, "c" in bank) == (True, False, True)


def test_an_empty_stack_takes_no_memory(bert: Backbone) -> None:
    bank = Bank(bert, slots=4)
    for number, method in enumerate(("lora", "lora", "lora", "ia3", "bitfit", "adapter", "prefix")):
        bank.put(str(number), perturbed_delta(bert, method, seed=number))
    sizes = [sum(pool.shape[1] for pool in stack_slots.stack.pools[:1]) for stack_slots in bank._stacks]
    assert sizes == [0, 1, 1, 1, 1], "the three of the first stack have made room"
    bank.put("0", perturbed_delta(bert, "lora"))
    assert close(states(bert, bank, ["0"] * 4), alone(bert, [perturbed_delta(bert, "lora")] * 4))


def test_deltas_of_the_current_batch_are_not_evicted(bert: Backbone) -> None:
    bank = Bank(bert, slots=2)
    for number, name in enumerate("ab"):
        bank.put(name, perturbed_delta(bert, "lora", seed=number), beside="ab")
    with pytest.raises(DeltaError, match="2 slots, all needed at once"):
        bank.put("c", perturbed_delta(bert, "lora"), beside="abc")
    assert "a" in bank
    assert "b" in bank


def test_a_name_has_one_slot_with_its_newest_delta(bert: Backbone) -> None:
    bank, new = Bank(bert, slots=2), perturbed_delta(bert, "lora", seed=5)
    bank.put("a", perturbed_delta(bert, "lora"))
    bank.put("a", new)
    assert len(bank) == 1
    assert close(states(bert, bank, ["a"] * 4), alone(bert, [new] * 4))


def test_deltas_of_similar_size_share_a_stack(bert: Backbone) -> None:
    """Ranks up to 8 share one matrix product at any scale; rank 9 has another."""
    bank = Bank(bert, slots=8)
    for rank in (1, 3, 8, 9):
        bank.put(str(rank), perturbed_delta(bert, "lora", rank=rank, alpha=2.0 * rank + 1))
    _, mixture = bank.mixed_batch(["1", "3", "8", "9"])
    assert [len(slots) for _, slots in mixture.stacks] == [3, 1]


def test_a_delta_of_another_backbone_is_refused_and_takes_no_slot(bert: Backbone) -> None:
    bank = Bank(bert, slots=1)
    with pytest.raises(DeltaError, match="learned on backbone"):
        bank.put("a", replace(perturbed_delta(bert, "lora"), backbone="0" * 64))
    assert len(bank) == 0


def test_a_row_without_a_delta_equals_the_backbone(bert: Backbone) -> None:
    bank = Bank(bert, slots=1)
    bank.put("a", perturbed_delta(bert, "adapter"))
    order, mixture = bank.mixed_batch([None, "a", None, "a"])
    assert order == [1, 3, 0, 2]
    batch = pad(bert, tokenize(bert, TEXTS, max_length=24), order)
    with torch.no_grad():
        base = bert.hidden_states(batch)
        with attached(bert, mixture):
            hidden = bert.hidden_states(batch)
        assert torch.equal(hidden[2:], base[2:])
        assert torch.equal(bert.hidden_states(batch), base)


class Shelf:
    """A store of deltas that counts the reads of each."""

    def __init__(self, backbone: Backbone) -> None:
        self.deltas = {str(seed): perturbed_delta(backbone, "lora", seed=seed) for seed in range(6)}
        self.read: list[str] = []
        self.broken: set[str] = set()

    def __call__(self, name: str) -> Delta:
        self.read.append(name)
        if name in self.broken:
            raise BlobError(f"blob of {name} is missing")
        return self.deltas[name]


def test_a_delta_is_read_once_while_memory_holds_it(bert: Backbone) -> None:
    shelf = Shelf(bert)
    size = sum(tensor.nbytes for tensor in shelf.deltas["0"].tensors().values())
    residents = DeltaCache(bert, shelf, max_bytes=2 * size)
    for name in ("0", "1", "0", "2", "0", "1"):
        assert residents.get(name) is shelf.deltas[name]
    assert shelf.read == ["0", "1", "2", "1"], "the one used longest ago went when a third came"


def test_prefetched_deltas_are_read_in_the_background(bert: Backbone) -> None:
    started, go = Event(), Event()

    def read(name: str) -> Delta:
        started.set()
        assert go.wait(10)
        return perturbed_delta(bert, "lora")

    residents = DeltaCache(bert, read)
    residents.prefetch(["0", "0"])
    assert started.wait(10), "it is read while nothing waits for it"
    go.set()
    residents.get("0")


def test_a_failed_read_is_tried_again(bert: Backbone) -> None:
    shelf = Shelf(bert)
    shelf.broken = {"1"}
    residents = DeltaCache(bert, shelf)
    residents.prefetch(["1"])
    with pytest.raises(BlobError, match="blob of 1 is missing"):
        residents.get("1")
    shelf.broken = set()
    residents.put_on_device("1", residents.get("1"), beside=())
    assert close(states(bert, residents, ["1"] * 4), alone(bert, [shelf.deltas["1"]] * 4))
