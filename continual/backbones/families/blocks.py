"""Parts of tables that families share: the roles of an attention and of a feed-forward, by the paths of modules."""

from continual.backbones.sites import Site, attention, attention_heads, block, module_input, projection


def attention_roles(module: str, names: str, *, out: str = "", role: str = "attn") -> dict[str, Site]:
    """The roles of an attention whose projections are modules of it by these names, for query, key, value and output.

    out: the path of the output's projection where it is elsewhere.
    """
    q, k, v, *last = (f"{module}.{name}" for name in names.split())
    out = out or last[0]
    return {
        role: block(q, out),
        f"{role}.heads": attention_heads(q, out),
        f"{role}.kv": attention(module, k),
        f"{role}.q": projection(q),
        f"{role}.k": projection(k),
        f"{role}.v": projection(v),
        f"{role}.out": projection(out),
    }


def fused_attention_roles(module: str, qkv: str, out: str) -> dict[str, Site]:
    """The same where one module makes query, key and value, in this order."""
    whole, out = f"{module}.{qkv}", f"{module}.{out}"
    return {
        "attn": block(whole, out),
        "attn.heads": attention_heads(whole, out, (0, 3)),
        "attn.kv": attention(module, whole, (1, 3)),
        "attn.q": projection(whole, (0, 3)),
        "attn.k": projection(whole, (1, 3)),
        "attn.v": projection(whole, (2, 3)),
        "attn.out": projection(out),
    }


def feed_forward_roles(first: str, last: str, *, gate: str = "") -> dict[str, Site]:
    """The roles of act(x W_in) W_out, or of (act(x W_gate) ⊙ x W_in) W_out where there is a gate (arXiv:2002.05202)."""
    return {
        "ffn": block(first, last),
        "ffn.in": projection(first),
        **({"ffn.gate": projection(gate)} if gate else {}),
        "ffn.inner": module_input(last),
        "ffn.out": projection(last),
    }
