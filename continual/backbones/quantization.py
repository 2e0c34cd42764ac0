"""Frozen weights in 8 or 4 bits, packed by bitsandbytes: LLM.int8 and NF4.

    8: W ≈ diag(s / 127) Q, Q of whole numbers in ±127, s the largest of each row · Dettmers et al. (2022),
       "LLM.int8()", arXiv:2208.07339, which reads its inputs in 8 bits too, save the columns with outliers
    4: W ≈ a code of 16 numbers, the quantiles of a normal, times the largest of each 64 weights, itself in 8 bits ·
       Dettmers et al. (2023), "QLoRA", arXiv:2305.14314

The linear layers of the stacks are packed; embeddings, norms, biases and the heads of language models are not.
"""

import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from continual.errors import BackboneError
from registry import BITS, Bits, split_bits

_NEEDED = "a quantised backbone needs the extra `quantized`; install it: pip install 'continual[quantized]'"
_DEVICES = ("cpu", "cuda")


def plain_name(name: str, bits: int | None = None) -> tuple[str, Bits | None]:
    """What a backbone is called before it is quantised, and the bits that its name says or `bits` does.

    >>> plain_name("minilm@8bit")
    ('minilm', 8)

    Raises BackboneError for other bits than 8 and 4, or where the two say different things.
    """
    if bits not in (None, *BITS.values()):
        raise BackboneError(f"weights cannot have {bits} bits; allowed: 8 or 4, or none named for float32")
    plain, said = split_bits(name)
    if said is None:
        return name, next((known for known in BITS.values() if known == bits), None)
    if bits not in (None, said):
        raise BackboneError(f"backbone {name!r} is one of {said} bits, and {bits} are asked for; say one")
    return plain, said


def check_quantization(config: Any, name: str, bits: Bits | None, device: torch.device) -> bool:
    """Whether what is loaded will be quantised, by its files or by `bits`.

    Raises BackboneError where it cannot be: by the files, by what is installed, or by the device.
    """
    by_files = getattr(config, "quantization_config", None)
    if by_files is None and bits is None:
        return False
    if by_files is not None:
        way = by_files.get("quant_method") if isinstance(by_files, dict) else by_files.quant_method
        if str(getattr(way, "value", way)) not in ("bitsandbytes", "None"):
            raise BackboneError(
                f"the files of backbone {name!r} are quantised by {way}; allowed: bitsandbytes, or none"
            )
        if bits is not None:
            raise BackboneError(f"the files of backbone {name!r} are quantised already; leave out the bits")
    if device.type not in _DEVICES:
        raise BackboneError(f"a quantised backbone computes on {' or '.join(_DEVICES)}, not on {device.type!r}")
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise BackboneError(f"{_NEEDED} ({package} is missing)")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of its own casts at every product
    return True


def quantization_config(bits: Bits, model: Any) -> BitsAndBytesConfig:
    """How `from_pretrained` packs the weights of such a model, its head left out."""
    heads = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    if model.base_model is not model:
        heads += [name for name, module in model.named_children() if module is not model.base_model]
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
    """Make what packed modules compute depend on nothing that was computed before.

    bitsandbytes rounds a bias to the type of the first input, and on processors with AVX-512 packs weights of 4 bits
    anew when they are first used without gradients, after which none flow. Biases are rounded to bfloat16 at once.

    Raises BackboneError for rows that it unpacks wrongly.
    """
    for module in _packed_modules(model):
        _check_rows(module)
        if module.bias is not None:
            module.bias.data = module.bias.data.bfloat16()
        if hasattr(module, "compute_dtype"):
            module.compute_dtype, module.compute_type_is_set = dtype, True
            module.support_avx512bf16_for_cpu = False


def _check_rows(module: Any) -> None:
    """On processors with AVX-512, release 0.50 unpacks a row as if it began a block of its own."""
    state = getattr(module.weight, "quant_state", None)
    if state is not None and module.in_features % state.blocksize:
        raise BackboneError(
            f"in 4 bits a layer reads a multiple of {state.blocksize} numbers, and one of this backbone reads "
            f"{module.in_features}; use 8 bits"
        )


def quantization_digest(model: Any) -> list[str]:
    """What besides its tensors decides what a quantised model computes: nothing of any other model."""
    states = (getattr(module, "state", None) for module in _packed_modules(model))
    return sorted({"nf4" if state is None else f"int8, outliers from {state.threshold}" for state in states})


def _packed_modules(model: Any) -> Iterator[Any]:
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and weight is not None and is_quantized(weight):
            yield module


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight has to be unpacked to be read."""
    return not weight.is_floating_point() or getattr(weight, "quant_state", None) is not None


def shape_of(weight: Tensor) -> torch.Size:
    """The shape of a weight, packed or not."""
    state = getattr(weight, "quant_state", None)
    return weight.shape if state is None else torch.Size(state.shape)
