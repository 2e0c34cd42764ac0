"""Parts of tables that families share: the roles of an attention and of a feed-forward."""

from continual.backbones.sites import Site, attention, attention_heads, block, module_input, projection


def attention_roles(
    module: str, names: str, *, out: str = "", role: str = "attn", pre_norm: str = "", post_norm: str = ""
) -> dict[str, Site]:
    """Return the roles of an attention with one projection each for queries, keys and values.

    Args:
        module: Path of the attention.
        names: Names in it of the query, key, value and output projections, separated by spaces.
        out: Path of the output projection, where it is outside the attention.
        role: Beginning of the roles' names.
        pre_norm: Path of the norm that takes the residual stream before the attention, if any.
        post_norm: Path of the norm of the residual stream behind the attention, if any.
    """
    q, k, v, *last = (f"{module}.{name}" for name in names.split())
    out = out or last[0]
    return {
        role: block(q, out, pre_norm=pre_norm, post_norm=post_norm),
        f"{role}.heads": attention_heads(q, out),
        f"{role}.kv": attention(module, k),
        f"{role}.q": projection(q),
        f"{role}.k": projection(k),
        f"{role}.v": projection(v),
        f"{role}.out": projection(out),
    }


def fused_attention_roles(module: str, qkv: str, out: str, *, pre_norm: str) -> dict[str, Site]:
    """Return the roles of an attention with one projection for queries, keys and values.

    Args:
        module: Path of the attention.
        qkv: Name in it of the projection that makes queries, keys and values, in this order.
        out: Name in it of the output projection.
        pre_norm: Path of the norm that takes the residual stream before the attention.
    """
    qkv, out = f"{module}.{qkv}", f"{module}.{out}"
    return {
        "attn": block(qkv, out, pre_norm=pre_norm),
        "attn.heads": attention_heads(qkv, out, (0, 3)),
        "attn.kv": attention(module, qkv, (1, 3)),
        "attn.q": projection(qkv, (0, 3)),
        "attn.k": projection(qkv, (1, 3)),
        "attn.v": projection(qkv, (2, 3)),
        "attn.out": projection(out),
    }


def feed_forward_roles(
    first: str, last: str, *, gate: str = "", pre_norm: str = "", post_norm: str = ""
) -> dict[str, Site]:
    """Return the roles of a feed-forward block.

    act(x W_in) W_out, or gated (act(x W_gate) ⊙ x W_in) W_out: Shazeer (2020), "GLU Variants Improve Transformer"
    (arXiv:2002.05202).

    Args:
        first: Path of W_in.
        last: Path of W_out.
        gate: Path of W_gate, if any.
        pre_norm: Path of the norm that takes the residual stream before the block, if any.
        post_norm: Path of the norm of the residual stream behind the block, if any.
    """
    return {
        "ffn": block(first, last, pre_norm=pre_norm, post_norm=post_norm),
        "ffn.in": projection(first),
        **({"ffn.gate": projection(gate)} if gate else {}),
        "ffn.inner": module_input(last),
        "ffn.out": projection(last),
    }
