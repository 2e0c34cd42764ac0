"""Frozen weights in 8 or 4 bits, packed by bitsandbytes: LLM.int8 and NF4.

    8 bits: W ≈ diag(s / 127) Q     Q integers in ±127, s the largest absolute value of each row
    4 bits: W ≈ m c[Q]              c the 16 quantiles of a normal, m the largest absolute value of each 64 weights,
                                    itself in 8 bits

Dettmers et al. (2022), "LLM.int8()" (arXiv:2208.07339), reads its inputs in 8 bits too, except the columns with
outliers. Dettmers et al. (2023), "QLoRA" (arXiv:2305.14314), for 4 bits (NF4).

The linear layers of the stacks are packed; embeddings, norms, biases and the heads of language models are not.
"""

import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from continual.backbones.base_model import base_model
from continual.errors import BackboneError
from registry import BITS, Bits, split_bits

_EXTRA_MISSING = (
    "a quantised backbone needs the extra `quantized`; install it: pip install 'continual-deltas[quantized]'"
)
_DEVICES = ("cpu", "cuda")


def plain_name(name: str, bits: int | None = None) -> tuple[str, Bits | None]:
    """Split the name of a backbone into the name without bits and the bits.

    >>> plain_name("minilm@8bit")
    ('minilm', 8)

    Args:
        name: A name such as `minilm` or `minilm@8bit`.
        bits: The bits, if they are given apart from the name.

    Returns:
        The name without bits, and the bits; None for float32.

    Raises:
        BackboneError: The bits are neither 8 nor 4, or name and `bits` differ.
    """
    if bits not in (None, *BITS.values()):
        raise BackboneError(f"weights cannot have {bits} bits; allowed: 8 or 4, or none named for float32")
    unquantized, name_bits = split_bits(name)
    if name_bits is None:
        return name, next((allowed for allowed in BITS.values() if allowed == bits), None)
    if bits not in (None, name_bits):
        raise BackboneError(f"backbone {name!r} is one of {name_bits} bits, and {bits} are asked for; say one")
    return unquantized, name_bits


def check_quantization(config: Any, name: str, bits: Bits | None, device: torch.device) -> bool:
    """Return whether the loaded backbone will be quantised, by its files or by `bits`.

    Args:
        config: The transformers configuration.
        name: Name of the backbone, for messages.
        bits: Bits to quantise to, if any.
        device: The device that it will compute on.

    Raises:
        BackboneError: Its files are quantised in an unsupported way or twice, bitsandbytes or accelerate is missing, or
            the device does not support it.
    """
    file_settings = getattr(config, "quantization_config", None)
    if file_settings is None and bits is None:
        return False
    if file_settings is not None:
        method = file_settings.get("quant_method") if isinstance(file_settings, dict) else file_settings.quant_method
        if str(getattr(method, "value", method)) not in ("bitsandbytes", "None"):
            raise BackboneError(
                f"the files of backbone {name!r} are quantised by {method}; allowed: bitsandbytes, or none"
            )
        if bits is not None:
            raise BackboneError(f"the files of backbone {name!r} are quantised already; leave out the bits")
    if device.type not in _DEVICES:
        raise BackboneError(f"a quantised backbone computes on {' or '.join(_DEVICES)}, not on {device.type!r}")
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise BackboneError(f"{_EXTRA_MISSING} ({package} is missing)")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of its own casts at every product
    return True


def quantization_config(bits: Bits, model: Any) -> BitsAndBytesConfig:
    """Return the configuration by which `from_pretrained` packs a model's weights except its head's.

    Args:
        bits: 8 or 4.
        model: A model of the same class and configuration; it may be on the meta device.
    """
    heads = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    if (stack := base_model(model)) is not model:
        heads += [name for name, module in model.named_children() if module is not stack]
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=heads,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def fix_compute_dtype(model: Any, dtype: torch.dtype) -> None:
    """Make the results of packed modules independent of earlier calls; the model is changed in place.

    bitsandbytes rounds a bias to the type of the first input, and on processors with AVX-512 packs weights of 4 bits
    anew when they are first used without gradients, after which none flow. Biases are rounded to bfloat16 at once.

    Raises:
        BackboneError: bitsandbytes would unpack the rows of a weight wrongly.
    """
    for module in _packed_modules(model):
        _check_rows(module)
        if module.bias is not None:
            module.bias.data = module.bias.data.bfloat16()
        if hasattr(module, "compute_dtype"):
            module.compute_dtype, module.compute_type_is_set = dtype, True
            module.support_avx512bf16_for_cpu = False


def _check_rows(module: Any) -> None:
    """Refuse rows that do not fill their blocks.

    On processors with AVX-512, bitsandbytes 0.50 unpacks a row as if it began a block of its own.
    """
    state = getattr(module.weight, "quant_state", None)
    if state is not None and module.in_features % state.blocksize:
        raise BackboneError(
            f"in 4 bits a layer reads a multiple of {state.blocksize} numbers, and one of this backbone reads "
            f"{module.in_features}; use 8 bits"
        )


def quantization_digest(model: Any) -> list[str]:
    """Return the settings, besides tensors, of a quantised model; empty for any other model."""
    states = (getattr(module, "state", None) for module in _packed_modules(model))
    return sorted({"nf4" if state is None else f"int8, outliers from {state.threshold}" for state in states})


def _packed_modules(model: Any) -> Iterator[Any]:
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and weight is not None and is_quantized(weight):
            yield module


def is_quantized(weight: Tensor) -> bool:
    """Return whether a weight of any shape is packed, so that its numbers cannot be read as they are."""
    return not weight.is_floating_point() or getattr(weight, "quant_state", None) is not None


def shape_of(weight: Tensor) -> torch.Size:
    """Return the shape of a weight, of a packed one the shape before packing."""
    state = getattr(weight, "quant_state", None)
    return weight.shape if state is None else torch.Size(state.shape)
