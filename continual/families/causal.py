"""Causal language models: a token sees those before it."""

from typing import Any

from continual.families.family import Family, Stack
from continual.sites import attention, between, embedding, entering, norm, projection, tokens

_GPT2 = "h.{}."
_GPT2_SITES = {
    "tokens": tokens("wte", ""),
    "embed.word": embedding("wte"),
    "embed.position": embedding("wpe"),
    "norm.attn": norm(_GPT2 + "ln_1"),
    "attn": between(_GPT2 + "attn.c_attn", _GPT2 + "attn.c_proj"),
    "attn.kv": attention(_GPT2 + "attn", _GPT2 + "attn.c_attn", (1, 3)),
    "attn.q": projection(_GPT2 + "attn.c_attn", (0, 3)),
    "attn.k": projection(_GPT2 + "attn.c_attn", (1, 3)),
    "attn.v": projection(_GPT2 + "attn.c_attn", (2, 3)),
    "attn.out": projection(_GPT2 + "attn.c_proj"),
    "norm.ffn": norm(_GPT2 + "ln_2"),
    "ffn": between(_GPT2 + "mlp.c_fc", _GPT2 + "mlp.c_proj"),
    "ffn.in": projection(_GPT2 + "mlp.c_fc"),
    "ffn.inner": entering(_GPT2 + "mlp.c_proj"),
    "ffn.out": projection(_GPT2 + "mlp.c_proj"),
    "norm.final": norm("ln_f"),
}


def gpt2(config: Any) -> Family:
    return Family(
        name=config.model_type,
        architecture="causal",
        stack=Stack(_GPT2_SITES, config.n_layer),
        hidden_size=config.n_embd,
        positions=config.n_positions,
    )
