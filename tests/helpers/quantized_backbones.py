"""Tiny backbones wide enough for quantisation blocks of 64, quantised and dequantised."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from transformers.pytorch_utils import Conv1D

from continual.backbones.backbone import Backbone, freeze, load_backbone
from continual.backbones.quantization import is_quantized
from tests.helpers.tiny_tasks import save_backbone, tiny_backbone

_BERT = {"hidden_size": 64, "intermediate_size": 128}
HIDDEN_SIZE: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "gpt2": {"n_embd": 64},
    "llama": _BERT,
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128},
    "bart": {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 64},
}


@cache
def float_backbone(kind: str) -> Backbone:
    return tiny_backbone(kind, **HIDDEN_SIZE[kind])


@cache
def checkpoint_folder(kind: str) -> Path:
    return save_backbone(float_backbone(kind), Path(mkdtemp(prefix=f"wide-{kind}-")))


@cache
def quantized_backbone(kind: str, bits: int, dtype: str = "auto") -> Backbone:
    return load_backbone(str(checkpoint_folder(kind)), device="cpu", dtype=dtype, bits=bits)


@cache
def dequantized_backbone(kind: str, bits: int, dtype: str = "bfloat16") -> Backbone:
    """Return a float backbone with the numbers that the quantised weights represent."""
    whole = deepcopy(float_backbone(kind).base_module)
    for path, module in quantized_backbone(kind, bits).base_module.named_modules():
        if isinstance(module, torch.nn.Linear) and is_quantized(module.weight):
            target: Any = whole.get_submodule(path)
            weight: Any = module.weight
            if bits == 4:
                values = dequantize_4bit(weight.data, weight.quant_state)
            else:
                state: Any = module.state
                scale = state.SCB if weight.SCB is None else weight.SCB
                values = weight.data * scale[:, None] / 127
            target.weight.data = (values.T if isinstance(target, Conv1D) else values).float().contiguous()
            if target.bias is not None:
                target.bias.data = module.bias.data.float()
    name = f"unpacked-{kind}"
    return freeze(whole, float_backbone(kind).tokenizer, name=name, device="cpu", dtype=dtype)
