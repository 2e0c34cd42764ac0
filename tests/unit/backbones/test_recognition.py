"""Families without a table that have Llama's modules, and text models in checkpoints of several modalities."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from continual.backbones.backbone import Backbone, freeze, load_backbone
from continual.backbones.families import FAMILIES, family_of
from continual.deltas import attached
from continual.errors import BackboneError
from tests.contract.test_families import batch_of
from tests.helpers.tiny_models import TINY_CONFIGS, gpt2_pieces
from tests.helpers.tiny_tasks import perturbed_delta

SIZES = {**TINY_CONFIGS["llama"][2], "pad_token_id": 0, "vocab_size": len(gpt2_pieces())}


def backbone_of(model_type: str, **changes: Any) -> Backbone:
    """Return a random backbone of a family without a table."""
    assert model_type not in FAMILIES
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SIZES, **changes}))
    return freeze(model, gpt2_pieces(), name="unknown", device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("model_type", "table"),
    [("granite", "llama"), ("ministral3", "llama"), ("stablelm", "llama"), ("exaone4", "olmo2"), ("olmo3", "olmo2")],
)
def test_a_family_with_the_modules_of_llama_has_its_sites_and_a_note(
    model_type: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = backbone_of(model_type)
    assert (backbone.family.name, backbone.family.recognized_as) == (model_type, table)
    assert (
        f"is of family {model_type!r}, which has no table of sites; its modules are those of {table!r}" in caplog.text
    )
    batch = batch_of(backbone)
    for method in ("lora", "prefix", "adapter_pfeiffer", "layer_norm"):
        with attached(backbone, perturbed_delta(backbone, method)), torch.no_grad():
            changed = backbone.hidden_states(batch)
        assert not torch.allclose(changed, backbone.hidden_states(batch), atol=1e-2)


def test_a_family_of_a_table_has_no_note(caplog: pytest.LogCaptureFixture) -> None:
    config = AutoConfig.for_model("llama", **SIZES)
    freeze(AutoModelForCausalLM.from_config(config), gpt2_pieces(), name="llama", device="cpu", dtype="float32")
    assert caplog.text == ""


def test_layers_that_scale_what_a_block_adds_are_refused() -> None:
    with pytest.raises(BackboneError, match=r"'granite'.*named as those of 'llama'.*layer\.0\.attn is not added"):
        backbone_of("granite", residual_multiplier=0.5)


@pytest.mark.parametrize("model_type", ["bloom", "gpt_neo", "mamba", "starcoder2", "phi", "mixtral", "vit", "clip"])
def test_other_modules_are_refused(model_type: str) -> None:
    with pytest.raises(BackboneError, match=rf"{model_type}.*not those of Llama.*llama"):
        family_of(AutoConfig.for_model(model_type))


VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def seeing() -> Any:
    """A Gemma 3 that reads images too."""
    _, name, settings = TINY_CONFIGS["gemma3"]
    text = getattr(transformers, name).config_class(vocab_size=len(gpt2_pieces()), **settings)
    torch.manual_seed(0)
    vision = {**VISION, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config).eval()


def test_the_text_model_of_several_modalities_is_a_backbone(seeing: Any, tmp_path: Path) -> None:
    seeing.save_pretrained(tmp_path)
    gpt2_pieces().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), device="cpu", dtype="float32")
    assert (backbone.family.name, backbone.family.recognized_as) == ("gemma3_text", "")
    assert not any("vision" in name for name, _ in backbone.language_model.named_modules())
    batch = batch_of(backbone)
    with torch.no_grad():
        assert torch.equal(backbone.language_model(**batch).logits, seeing(**batch).logits)


def test_a_model_of_several_modalities_in_memory_is_refused(seeing: Any) -> None:
    with pytest.raises(BackboneError, match=r"'gemma3'.*not those of Llama"):
        freeze(seeing, gpt2_pieces(), name="seeing", device="cpu", dtype="float32")
