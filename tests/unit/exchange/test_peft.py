"""Methods that PEFT has too: the same outputs and gradients with the same values."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from tests.helpers.parity import Owner, assert_same, batch_of, module_names, through_delta, through_parameters, whole
from tests.helpers.tiny_tasks import perturbed_delta, tiny_backbone

peft: Any = pytest.importorskip("peft")

# PEFT warns that it drops token types, which are all zero here.
pytestmark = pytest.mark.filterwarnings("ignore:Token type ids are not supported")


def wrapped(backbone: Backbone, config: Any) -> Any:
    return peft.get_peft_model(deepcopy(backbone.model), config).eval()


def assert_pefts(backbone: Backbone, delta: Delta, model: Any, owners: dict[str, Owner], *, added: int = 0) -> None:
    """Compare outputs and gradients with PEFT's, which returns `added` more tokens than the text has."""

    def hidden() -> Tensor:
        states: Tensor = model(**batch_of(backbone)).last_hidden_state
        return states[:, added:]

    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == sum(
        value.numel() for value in delta.values.values()
    )
    assert_same(through_delta(backbone, delta), through_parameters(backbone, hidden, owners, delta))


@pytest.mark.parametrize("scaling", ["standard", "rank_stabilized"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_lora_and_dora_equal_pefts(bertlike: Backbone, method: str, scaling: str) -> None:
    sites = ("attn.q", "attn.v")
    delta = perturbed_delta(bertlike, method, rank=4, alpha=6.0, sites=sites, scaling=scaling)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6.0,
        target_modules=["query", "value"],
        use_dora=method == "dora",
        use_rslora=scaling == "rank_stabilized",
    )
    model = wrapped(bertlike, config)
    owners: dict[str, Owner] = {}
    for number, site in enumerate(sites):
        for place, name in module_names(bertlike, site).items():
            module = model.base_model.model.get_submodule(name)
            parts = {"A": module.lora_A["default"].weight, "B": module.lora_B["default"].weight}
            if method == "dora":
                parts["magnitude"] = module.lora_magnitude_vector["default"].weight
            owners |= {f"{place}/{number}/{part}": whole(parameter) for part, parameter in parts.items()}
    assert_pefts(bertlike, delta, model, owners)


def test_ia3_equals_pefts(bertlike: Backbone) -> None:
    delta = perturbed_delta(bertlike, "ia3")
    inner = r".*layer\.\d+\.output\.dense"
    model = wrapped(bertlike, peft.IA3Config(target_modules=rf".*\.key|.*\.value|{inner}", feedforward_modules=inner))
    owners = {}
    for number, site in enumerate(("attn.k", "attn.v", "ffn.inner")):
        for place, name in module_names(bertlike, site).items():
            parameter = model.base_model.model.get_submodule(name).ia3_l["default"]
            owners[f"{place}/{number}/vector"] = (parameter, lambda tensor: tensor.view(-1))
    assert_pefts(bertlike, delta, model, owners)


def test_prompt_tuning_equals_pefts(bertlike: Backbone) -> None:
    delta = perturbed_delta(bertlike, "prompt", length=3)
    model = wrapped(bertlike, peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3))
    owners = {"tokens/0/words": whole(model.prompt_encoder["default"].embedding.weight)}
    assert_pefts(bertlike, delta, model, owners, added=3)


def _prefix_part(parts: int, part: int, table: Tensor) -> Tensor:
    """Return the view [P, D] of a prefix table [P, parts x D] that holds the keys or the values of one layer."""
    return table.view(3, parts, -1)[:, part]


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "gpt2", "opt", "llama", "qwen3"])
def test_prefix_tuning_equals_pefts(kind: str) -> None:
    """Position ids included: PEFT passes cached keys and values, so the text begins at P.

    It differs with sliding-window attention, as in Qwen2: there later tokens do not see PEFT's prefix.
    """
    backbone = tiny_backbone(kind)
    delta = perturbed_delta(backbone, "prefix", length=3, shift_positions=True)
    model = wrapped(backbone, peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3))
    table = model.prompt_encoder["default"].embedding.weight  # [P, keys and values of the lowest layer, …]
    owners: dict[str, Owner] = {}
    for layer in range(backbone.num_layers):
        for number, name in enumerate(("key", "value")):
            part = 2 * layer + number
            view = partial(_prefix_part, 2 * backbone.num_layers, part)
            owners[f"layer.{layer}.attn.kv/0/{name}"] = (table, view)
    assert_pefts(backbone, delta, model, owners)
