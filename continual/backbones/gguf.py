"""Convert a language model in a GGUF file to a plain folder of transformers."""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from continual.errors import BackboneError


def convert_gguf(file: Path, folder: Path) -> None:
    """Write config, tokenizer and float32 weights of a GGUF file into a folder; the weights are dequantised.

    Args:
        file: The GGUF file.
        folder: An existing folder.

    Raises:
        BackboneError: The package gguf is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise BackboneError(
            "the weights are a GGUF file, which needs the package gguf, of the extra `smollm2`; install it: "
            "pip install 'continual-deltas[smollm2]'"
        )
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # As if it had never been packed: a packed model refuses to be saved.
    del model.config.quantization_config, model.hf_quantizer
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
