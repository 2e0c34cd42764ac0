"""A GGUF file becomes a plain folder of transformers with the same weights and tokenizer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from continual.backbones.gguf import convert_gguf

gguf = pytest.importorskip("gguf", reason="the extra `smollm2` is not installed")

VOCABULARY = ["<|end|>", "a", "b", "Ġ", "Ġa", "ab", "1", "2"]
HIDDEN, INNER, LAYERS = 32, 64, 2


def write_gguf(file: Path) -> None:
    """Write a random Llama of two layers, packed in 4 bits where its rows allow it."""
    writer, random = gguf.GGUFWriter(file, "llama"), np.random.default_rng(0)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // 4)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(VOCABULARY) - 1)])
    writer.add_token_merges(["Ġ a", "a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
    shapes = {"token_embd": (len(VOCABULARY), HIDDEN)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "output")}
        shapes |= {f"{block}attn_{name}": (HIDDEN // 2, HIDDEN) for name in ("k", "v")}
        shapes |= {f"{block}ffn_{name}": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{block}ffn_down": (HIDDEN, INNER)}
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{norm}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for name, shape in shapes.items():
        weight = random.normal(size=shape).astype(np.float32)
        packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_folder_computes_what_the_file_does(tmp_path: Path) -> None:
    file, folder = tmp_path / "tiny.gguf", tmp_path / "tiny"
    folder.mkdir()
    write_gguf(file)
    convert_gguf(file, folder)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    converted = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[1, 5, 3, 4]])
    assert torch.equal(converted(ids).logits, expected(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ab a1")["input_ids"] == [5, 4, 6]
    assert (tokenizer.eos_token, tokenizer.chat_template is not None) == ("<|end|>", True)
