"""LoRA that starts at the principal components of the weights, against PEFT's PiSSA and its conversion to LoRA."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.base_model import base_model
from continual.deltas import Delta, attached, finalize, init_values, load_delta
from continual.deltas.forms import LowRank
from continual.deltas.injection.layout import canonical_layout, layout_of
from continual.deltas.methods import pissa
from continual.deltas.methods import truncated_svd as svd
from continual.deltas.methods.lora import LoRA
from continual.deltas.values import check_compatible
from continual.exchange import to_peft
from continual.exchange.merging import merge_into_model
from continual.training.training_run import train
from tasks import Budget
from tests.helpers.parity import Owner, assert_same, batch_of, module_names, through_delta, through_parameters, whole
from tests.helpers.tiny_tasks import fresh_delta, logits, prepared_rows, tiny_backbone

SITES = ("attn.q", "ffn.out")
SETTINGS: dict[str, Any] = {"rank": 4, "alpha": 6.0, "sites": SITES, "init": "pissa"}
SCALINGS = pytest.mark.parametrize("scaling", ["standard", "rank_stabilized"])


def moved(backbone: Backbone, *, by: float = 0.1, **settings: Any) -> Delta:
    """Return a delta whose A and B differ from their start, as after training."""
    delta, generator = fresh_delta(backbone, "lora", **SETTINGS | settings), torch.Generator().manual_seed(1)
    values = {
        key: value if key.endswith("0") else value + by * torch.randn(value.shape, generator=generator)
        for key, value in delta.values.items()
    }
    return replace(delta, values=values)


def states(backbone: Backbone, delta: Delta | None) -> Tensor:
    with torch.no_grad(), attached(backbone, delta):
        return backbone.hidden_states(batch_of(backbone))


def pefts(backbone: Backbone, scaling: str) -> Any:
    peft: Any = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6.0,
        target_modules=["query", *(f"layer.{n}.output.dense" for n in range(backbone.num_layers))],
        init_lora_weights="pissa",
        use_rslora=scaling == "rank_stabilized",
    )
    return peft.get_peft_model(deepcopy(backbone.model), config).eval()


def owners_of(backbone: Backbone, model: Any) -> dict[str, Owner]:
    owners: dict[str, Owner] = {}
    for number, site in enumerate(SITES):
        for place, name in module_names(backbone, site).items():
            module = model.base_model.model.get_submodule(name)
            owners[f"{place}/{number}/A"] = whole(module.lora_A["default"].weight)
            owners[f"{place}/{number}/B"] = whole(module.lora_B["default"].weight)
    return owners


@SCALINGS
def test_the_start_and_the_training_are_those_of_peft(bertlike: Backbone, scaling: str) -> None:
    """PEFT trains the same factors on the residual of the weight, which it puts into the base."""
    fresh, model = fresh_delta(bertlike, "lora", **SETTINGS, scaling=scaling), pefts(bertlike, scaling)
    owners = owners_of(bertlike, model)
    for prefix in {key.rpartition("/")[0] for key in owners}:
        start = owners[f"{prefix}/B"][0] @ owners[f"{prefix}/A"][0]  # the sign of a component is arbitrary
        torch.testing.assert_close(fresh.values[f"{prefix}/B"] @ fresh.values[f"{prefix}/A"], start.detach())
    delta = moved(bertlike, scaling=scaling)

    def hidden() -> Tensor:
        result: Tensor = model(**batch_of(bertlike)).last_hidden_state
        return result

    assert_same(through_delta(bertlike, delta), through_parameters(bertlike, hidden, owners, delta))


@SCALINGS
def test_the_export_is_pefts_conversion_to_lora(bert: Backbone, scaling: str, tmp_path: Path) -> None:
    delta, model = moved(bert, scaling=scaling), pefts(bert, scaling)
    model.peft_config["default"].init_lora_weights = True
    owners = owners_of(bert, model)
    with torch.no_grad():
        for key, (parameter, _) in owners.items():
            parameter.copy_(delta.values[f"{key}0"])  # the start, in our signs
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for key, (parameter, _) in owners.items():
            parameter.copy_(delta.values[key])
    model.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    converted, exported = (
        load_file(tmp_path / "out" / "adapter_model.safetensors"),
        to_peft(bert, finalized(bert, delta)),
    )
    assert exported.config["r"] == 8
    assert exported.config["lora_alpha"] == pytest.approx(12.0 if scaling == "standard" else 6.0 * 2**0.5)
    assert exported.tensors.keys() == converted.keys()
    for name in (name for name in converted if "lora_A" in name):
        products = (
            tensors[name.replace("lora_A", "lora_B")] @ tensors[name] for tensors in (exported.tensors, converted)
        )
        torch.testing.assert_close(*products, rtol=1e-4, atol=1e-5)


def finalized(backbone: Backbone, delta: Delta) -> Delta:
    return finalize(backbone, delta, stage=0)


def test_a_fresh_delta_changes_nothing_to_the_bit_and_starts_at_the_largest_components(backbone: Backbone) -> None:
    delta = fresh_delta(backbone, "lora", rank=3, alpha=2.0, init="pissa")
    assert torch.equal(states(backbone, delta), states(backbone, None))
    place = backbone.modules_at("attn.v" if "attn.v" in backbone.family.stack.sites else "attn.out")[0]
    number = next(key.split("/")[1] for key in delta.values if key.startswith(f"{place.name}/"))
    a, b = (delta.values[f"{place.name}/{number}/{name}"] for name in "AB")
    error = torch.linalg.matrix_norm(place.weight - 2 / 3 * b @ a)  # Eckart and Young: the least of rank 3
    assert float(error) == pytest.approx(float(torch.linalg.svdvals(place.weight)[3:].norm()), rel=1e-4)


def test_the_final_form_is_the_same_change_of_twice_the_rank(backbone: Backbone) -> None:
    delta = moved(backbone, by=0.02, sites=("projections",))
    final = finalized(backbone, delta)
    torch.testing.assert_close(states(backbone, final), states(backbone, delta), rtol=1e-3, atol=1e-3)
    assert {value.shape[key.endswith("B")] for key, value in final.values.items()} == {8}
    check_compatible(backbone, final)
    assert finalized(backbone, final).values == final.values
    steps = canonical_layout(layout_of(backbone, final)).steps
    assert {edit.form for _, edit in steps} == {LowRank(8)}
    merged = merge_into_model(backbone, final)
    torch.testing.assert_close(
        states(replace(backbone, model=base_model(merged)), None), states(backbone, final), rtol=1e-3, atol=1e-3
    )


def test_rounding_for_storage_loses_less_than_the_difference_of_the_stacked_factors(bert: Backbone) -> None:
    delta = moved(bert, by=0.003)
    prefix = "layer.0.attn.q/0"
    a, b, a0, b0 = (delta.values[f"{prefix}/{name}"].double() for name in ("A", "B", "A0", "B0"))
    change = b @ a - b0 @ a0
    stacked = torch.cat([b, -b0], dim=1).half().double() @ torch.cat([a, a0]).half().double()
    rounded = finalized(bert, delta).quantise_to_float16().values
    balanced = rounded[f"{prefix}/B"].double() @ rounded[f"{prefix}/A"].double()
    assert (balanced - change).norm() < 0.001 * change.norm()
    assert (stacked - change).norm() > 10 * (balanced - change).norm()


def test_training_moves_the_factors_and_stores_a_low_rank_change(bert: Backbone) -> None:
    result = train(
        bert,
        fresh_delta(bert, "lora", **SETTINGS),
        rows=prepared_rows(bert, "mood", 12),
        validation=prepared_rows(bert, "mood", 6, seed=1),
        budget=Budget(epochs=2, batch_size=4, learning_rate=1e-2),
        metric="accuracy",
        seed=0,
    )
    assert {key.rpartition("/")[2] for key in result.delta.values} == {"A", "B"}
    assert (states(bert, result.delta) - states(bert, None)).abs().max() > 1e-3
    again = load_delta(result.delta.to_bytes())
    tokens = prepared_rows(bert, "mood", 6, seed=2).tokens
    assert torch.equal(logits(bert, again, tokens), logits(bert, result.delta, tokens))


def test_a_stored_delta_is_checked_without_a_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone("gpt2", seed=7)
    delta, place = moved(backbone), backbone.modules_at("attn.q")[0]
    form = LoRA(**SETTINGS).edits()[0].form
    assert isinstance(form, pissa.PrincipalLowRank)
    fresh = form.init_values(place, place.d_in, torch.Generator())
    assert {name: tuple(value.shape) for name, value in fresh.items()} == form.value_shapes(place, place.d_in)
    final = finalized(backbone, delta)
    monkeypatch.setattr(pissa, "principal_factors", None)
    check_compatible(backbone, final)
    with pytest.raises(TypeError):
        init_values(backbone, delta.settings, seed=0)


def test_a_weight_is_decomposed_once_for_all_ranks_up_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone("gpt2", seed=8)
    alone = {rank: init_values(tiny_backbone("gpt2", seed=8), LoRA(rank=rank, init="pissa"), seed=0) for rank in (2, 5)}
    init_values(backbone, LoRA(rank=5, init="pissa"), seed=0)
    monkeypatch.setattr(svd, "_decompose", None)
    for rank, expected in alone.items():
        values = init_values(backbone, LoRA(rank=rank, init="pissa"), seed=1)
        for key, value in values.items():
            torch.testing.assert_close(value, expected[key])
    with pytest.raises(TypeError):
        init_values(backbone, LoRA(rank=6, init="pissa"), seed=0)
