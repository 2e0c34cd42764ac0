"""Parts of tables that families share: the roles of an attention and of a feed-forward."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

from continual.backbones.sites import Site, attention, attention_heads, block, module_input, projection


def attention_roles(
    module: str,
    names: str,
    *,
    out: str = "",
    role: str = "attn",
    pre_norm: str = "",
    post_norm: str = "",
    out_norm: str = "",
) -> dict[str, Site]:
    """Return the roles of an attention with one projection each for queries, keys and values.

    Args:
        module: Path of the attention.
        names: Names in it of the query, key, value and output projections, separated by spaces.
        out: Path of the output projection, where it is outside the attention.
        role: Beginning of the roles' names.
        pre_norm: Path of the norm that takes the residual stream before the attention, if any.
        post_norm: Path of the norm of the residual stream behind the attention, if any.
        out_norm: Path of the norm of what the attention adds to the residual stream, if any.
    """
    q, k, v, *last = (f"{module}.{name}" for name in names.split())
    out = out or last[0]
    return {
        role: block(q, out_norm or out, pre_norm=pre_norm, post_norm=post_norm),
        f"{role}.heads": attention_heads(q, out),
        f"{role}.kv": attention(module, k),
        f"{role}.q": projection(q),
        f"{role}.k": projection(k),
        f"{role}.v": projection(v),
        f"{role}.out": projection(out),
    }


def fused_attention_roles(
    module: str, qkv: str, out: str, *, pre_norm: str, sizes: tuple[int, int] = (1, 1)
) -> dict[str, Site]:
    """Return the roles of an attention with one projection for queries, keys and values.

    Args:
        module: Path of the attention.
        qkv: Name in it of the projection that makes queries, keys and values, in this order.
        out: Name in it of the output projection.
        pre_norm: Path of the norm that takes the residual stream before the attention.
        sizes: Numbers of heads of the queries, and of the keys.
    """
    qkv, out = f"{module}.{qkv}", f"{module}.{out}"
    heads, shared = sizes
    ends = (0, heads, heads + shared, heads + 2 * shared)
    q, k, v = ((begin, end, ends[-1]) for begin, end in pairwise(ends))
    return {
        "attn": block(qkv, out, pre_norm=pre_norm),
        "attn.heads": attention_heads(qkv, out, q),
        "attn.kv": attention(module, qkv, k),
        "attn.q": projection(qkv, q),
        "attn.k": projection(qkv, k),
        "attn.v": projection(qkv, v),
        "attn.out": projection(out),
    }


def feed_forward_roles(
    first: str, last: str, *, gate: str = "", pre_norm: str = "", post_norm: str = "", out_norm: str = ""
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
        out_norm: Path of the norm of what the block adds to the residual stream, if any.
    """
    return {
        "ffn": block(first, out_norm or last, pre_norm=pre_norm, post_norm=post_norm),
        "ffn.in": projection(first),
        **({"ffn.gate": projection(gate)} if gate else {}),
        "ffn.inner": module_input(last),
        "ffn.out": projection(last),
    }


def fused_gate_roles(fused: str, last: str, *, pre_norm: str) -> dict[str, Site]:
    """Return the roles of a gated feed-forward with one projection for W_gate and W_in, in this order.

    Args:
        fused: Path of the projection.
        last: Path of W_out.
        pre_norm: Path of the norm that takes the residual stream before the block.
    """
    return {
        **feed_forward_roles(fused, last, pre_norm=pre_norm),
        "ffn.gate": projection(fused, (0, 1, 2)),
        "ffn.in": projection(fused, (1, 2, 2)),
    }


def only_in(layers: Iterable[int], sites: Mapping[str, Site]) -> dict[str, Site]:
    """Return sites that only some layers have; none where no layer has them."""
    numbers = tuple(layers)
    return {name: replace(site, layers=numbers) for name, site in sites.items()} if numbers else {}
