"""Sites, the roles in a transformer at which edits are put, and their places in one model.

A *site* is a role ("attn.q", "ffn", "norm.attn"); a family's table says which module plays it (`families`). Methods
name sites only, so a method works on every family whose table has them. A *place* is a site of one layer of one model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from continual.backbones.arguments import Call, bind_arguments
from continual.backbones.quantization import is_quantized, shape_of
from continual.errors import BackboneError

# The value that an edit changes: a module's output, its input, the keys and values of an attention, or the tokens that
# a stack of layers reads.
Changes = Literal["output", "input", "attention", "tokens"]
Group = Literal["projections", "norms", "embeddings", ""]  # sites that methods may name together
OUTPUT_EMBEDDINGS = "embed.output"  # the site of the table that scores the next token
Part = tuple[int, int, int]  # (begin, end, of): the outputs from begin/of to end/of of a module's
WHOLE: Part = (0, 1, 1)


@dataclass(frozen=True)
class Site:
    """One role in a family, by the paths of its modules.

    In a path `{}` stands for the number of the layer.

    Attributes:
        input_path: The module whose input an edit may read.
        output_path: The module at which the change happens.
        changes: The value that an edit changes there.
        group: The group of sites that it belongs to, if any.
        part: Of a module that computes several projections at once, the share of its outputs.
        argument: The name of the argument that is changed, where it is not the first.
        read_input: Computes the input from the call's arguments, where it is not that argument.
        is_shared: Whether the output is the same for all rows of a batch.
        pre_norm_path: Of a block, the norm between the residual stream and the block's input, if any.
        post_norm_path: Of a block, the norm of the residual stream with the block's output added, if any.
        is_residual: Whether the output is the residual stream itself, as that of a norm behind a block is.
        layers: Numbers of the layers that have it; None where all have.
        is_block: Whether it is several modules in a row, whose output is added to the residual stream.
        width: Dimensions of the input and the output, where its modules have no weight that tells them.
        beside_path: Of a block, the last module of one that reads and is added to the same residual stream, if any.
        offset: Of a norm, what its module adds to its weight to make the gain.
        keeps_zeros: Whether the module must return zeros where it takes zeros, as at padding before a recurrent layer.
    """

    input_path: str
    output_path: str
    changes: Changes = "output"
    group: Group = ""
    part: Part = WHOLE
    argument: str = ""
    read_input: Callable[[Call], Tensor] | None = None
    is_shared: bool = False
    pre_norm_path: str = ""
    post_norm_path: str = ""
    is_residual: bool = False
    layers: tuple[int, ...] | None = None
    is_block: bool = False
    width: int = 0
    beside_path: str = ""
    offset: float = 0.0
    keeps_zeros: bool = False


def projection(path: str, part: Part = WHOLE, *, is_shared: bool = False) -> Site:
    """Return the site of a linear layer, or of a part of its outputs.

    Args:
        path: The layer's module.
        part: The part.
        is_shared: Whether it computes something that all rows of a batch have in common, too.
    """
    return Site(path, path, "output", "projections", part, is_shared=is_shared)


def norm(path: str, *, is_residual: bool = False) -> Site:
    """Return the site of a normalisation layer.

    Args:
        path: The layer's module.
        is_residual: Whether it is behind a block (post-norm), so that its output is the residual stream.
    """
    return Site(path, path, "output", "norms", is_residual=is_residual)


def embedding(path: str, row_indices: Callable[[Call], Tensor] | None = None, *, is_shared: bool = False) -> Site:
    """Return the site of an embedding table.

    Args:
        path: The table's module.
        row_indices: Computes the indices of the table's rows from a call, of shape [B, T] or [T], where they are not
            its first argument.
        is_shared: Whether the output is the same for all rows of a batch.
    """
    return Site(path, path, "output", "embeddings", read_input=row_indices, is_shared=is_shared)


def block(first: str, last: str, *, pre_norm: str = "", post_norm: str = "", width: int = 0) -> Site:
    """Return the site of several modules in a row, from the first one's input x to the last one's output y.

    With the residual stream r, a block before which a norm N is (pre-norm) has x = N(r) and r ← r + y; one with the
    norm behind it (post-norm) has x = r and r ← N(r + y). A norm of what is added to the stream is the last module.

    Args:
        first: The module that takes x.
        last: The module that returns y.
        pre_norm: N in families that normalise before the block.
        post_norm: N in families that normalise behind it.
        width: Dimensions of x and y, where the modules have no weight that tells them.
    """
    return Site(first, last, pre_norm_path=pre_norm, post_norm_path=post_norm, is_block=True, width=width)


def module_input(path: str) -> Site:
    """Return the site of a module's input."""
    return Site(path, path, "input")


def attention_heads(query: str, out: str, part: Part = WHOLE) -> Site:
    """Return the site of the concatenated outputs of an attention's heads.

    Edits may read the queries' input.

    Args:
        query: The projection that makes the queries.
        out: The projection that takes the heads' outputs.
        part: Of a projection that makes queries, keys and values, the queries.
    """
    return Site(query, out, "input", "", part)


def positions(path: str, argument: str = "", read_positions: Callable[[Call], Tensor] | None = None) -> Site:
    """Return the site of token positions, the integers that a position or rotary embedding takes.

    Args:
        path: The embedding's module.
        argument: The argument with the positions, where it is not the first.
        read_positions: Computes the positions from a call that lacks them, of shape [B, T] or [T].
    """
    return Site(path, path, "input", argument=argument, read_input=read_positions)


def attention(path: str, key: str, part: Part = WHOLE) -> Site:
    """Return the site of an attention's keys and values; `key` is the projection that makes its keys."""
    return Site(key, path, "attention", "", part)


def tokens(words: str, stack: str) -> Site:
    """Return the site of the tokens that a stack of layers reads; `words` is its table of word vectors."""
    return Site(words, stack, "tokens")


@dataclass(frozen=True)
class Place:
    """A site of one layer of one model.

    Attributes:
        name: Stable key, such as `layer.3.attn.q`.
        site: Name of the site.
        layer: Number of the layer; None for a site outside the layers.
        num_layers: Number of layers of its stack.
        input_module: The module whose input an edit may read.
        output_module: The module at which the change happens.
        changes: The value that an edit changes there.
        d_in: Last dimension of the input; of an embedding, its number of rows.
        d_out: Last dimension of the value that is changed.
        columns: Its columns of the module's output, where a module computes several projections.
        num_heads: Heads of each attention of its stack.
        argument: As in `Site`.
        read_input: As in `Site`.
        is_shared: As in `Site`.
        pre_norm: Of a block, the norm between the residual stream and its input, if any.
        post_norm: Of a block, the norm of the residual stream with its output added, if any.
        is_residual: As in `Site`.
        is_block: As in `Site`.
        beside: Of a block, the last module of one that reads and is added to the same residual stream, if any.
        offset: As in `Site`.
        keeps_zeros: As in `Site`.
    """

    name: str
    site: str
    layer: int | None
    num_layers: int
    input_module: nn.Module
    output_module: nn.Module
    changes: Changes
    d_in: int
    d_out: int
    columns: slice | None = None
    num_heads: int = 1
    argument: str = ""
    read_input: Callable[[Call], Tensor] | None = None
    is_shared: bool = False
    pre_norm: nn.Module | None = None
    post_norm: nn.Module | None = None
    is_residual: bool = False
    is_block: bool = False
    beside: nn.Module | None = None
    offset: float = 0.0
    keeps_zeros: bool = False

    def input_of(self, args: Sequence[Any], kwargs: Call) -> Tensor:
        """Return the input of a call of `input_module`: hidden states [..., d_in], row indices, or positions."""
        if self.read_input is None and not self.argument:
            first: Tensor = args[0]
            return first
        call = bind_arguments(self.input_module, args, kwargs)
        if self.read_input is None:
            argument: Tensor = call[self.argument]
            return argument
        inputs, weight = self.read_input(call), getattr(self.input_module, "weight", None)
        # A call may tell a shape alone, without a device.
        return inputs if weight is None or weight.is_meta else inputs.to(weight.device)

    @property
    def residual_module(self) -> nn.Module:
        """The module whose input is the residual stream in front of a block: the norm before it, or its first one."""
        return self.pre_norm or self.input_module

    def residual_behind(self, residual: Tensor, output: Tensor) -> Tensor:
        """Return the residual stream [..., D] behind a block from that in front of it and the block's output."""
        total = residual + output
        return total if self.post_norm is None else self.post_norm(total)

    def allow_positions_per_row(self) -> Iterator[RemovableHandle]:
        """Let a module that takes positions [T] take [B, T], by a hook that keeps its output at [B, T, D].

        Such a module adds a dimension in front, [1, B, T, D], which the hook removes. Yields the hook's handle; nothing
        for a place without positions in an argument of their own.
        """

        def drop_first_dimension(module: nn.Module, args: Sequence[Any], output: Any) -> Any:
            return output[0] if isinstance(output, Tensor) and output.dim() == 4 else output

        if self.argument:
            yield self.output_module.register_forward_hook(drop_first_dimension, prepend=True)

    @property
    def is_hidden_state(self) -> bool:
        """True where edits read and change hidden states, not indices, positions, or keys and values."""
        return (
            self.changes in ("output", "input")
            and not self.argument
            and not isinstance(self.input_module, nn.Embedding)
        )

    @property
    def is_linear(self) -> bool:
        """True where the output is the input times one readable weight [d_out, d_in], with or without a bias."""
        is_output = self.is_hidden_state and self.changes == "output" and self.input_module is self.output_module
        return is_output and self.has_readable_weight and self.module_weight.dim() == 2

    @property
    def has_readable_weight(self) -> bool:
        """True where the weight of `input_module` is in memory as it is, neither packed nor on the disk."""
        weight = getattr(self.input_module, "weight", None)
        return weight is not None and not is_quantized(weight) and not weight.is_meta

    def frozen_forward(self, states: Tensor) -> Tensor:
        """Apply the frozen `input_module`, without any edit, to states [..., d_in]: [..., d_out]."""
        if self.has_readable_weight:
            return F.linear(states, self.weight, self.bias)
        output: Tensor = self.input_module.forward(states)  # calling the module itself would run the hooks of edits
        return output if self.columns is None else output[..., self.columns]

    @property
    def weight(self) -> Tensor:
        """The frozen weight, of shape [d_out, d_in] for a projection, [rows, d_out] an embedding, [d_out] a norm."""
        weight = self.module_weight
        return weight if self.columns is None else weight[self.columns]

    @property
    def module_weight(self) -> Tensor:
        """The whole module's frozen weight: `weight`, or of shape [columns of all parts, d_in] where that is a part."""
        return _weight(self.input_module)

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, of shape [d_out]; None without one."""
        bias: Tensor | None = getattr(self.input_module, "bias", None)
        return bias if bias is None or self.columns is None else bias[self.columns]


def table_place(name: str, table: nn.Module, *, num_layers: int) -> Place:
    """Return the place of the table [d_out, d_in] behind a model's last layer that scores the next token."""
    d_out, d_in = _shape(table)
    return Place(name, name, None, num_layers, table, table, "output", d_in, d_out)


def places_of(
    model: Any, name: str, site: Site, *, num_layers: int, num_heads: int, prefix: str = ""
) -> Iterator[Place]:
    """Yield the places of a site, from the lowest layer up; a layer without the module has none.

    Args:
        model: The transformers model.
        name: Name of the site.
        site: The site.
        num_layers: Number of layers of its stack.
        num_heads: Heads of each attention of its stack.
        prefix: Beginning of the places' names, `decoder.` for a decoder's.

    Raises:
        BackboneError: The model has no module at the site's path.
    """
    layers = range(num_layers) if site.layers is None else site.layers
    for layer in layers if "{}" in site.output_path else (None,):
        paths = (path.format(layer) for path in (site.input_path, site.output_path))
        input_module, output_module = (_module(model, name, path) for path in paths)
        if isinstance(input_module, nn.Identity):
            continue
        d_in, d_out, columns = _dimensions(site, input_module, output_module)
        yield Place(
            f"{prefix}{name}" if layer is None else f"{prefix}layer.{layer}.{name}",
            name,
            layer,
            num_layers,
            input_module,
            output_module,
            site.changes,
            d_in,
            d_out,
            columns=columns,
            num_heads=num_heads,
            argument=site.argument,
            read_input=site.read_input,
            is_shared=site.is_shared,
            pre_norm=_module(model, name, site.pre_norm_path.format(layer)) if site.pre_norm_path else None,
            post_norm=_module(model, name, site.post_norm_path.format(layer)) if site.post_norm_path else None,
            is_residual=site.is_residual,
            is_block=site.is_block,
            beside=_module(model, name, site.beside_path.format(layer)) if site.beside_path else None,
            offset=site.offset,
            keeps_zeros=site.keeps_zeros,
        )


def _dimensions(site: Site, input_module: nn.Module, output_module: nn.Module) -> tuple[int, int, slice | None]:
    """d_in, d_out and the columns of a place."""
    if site.argument:  # positions, not vectors
        return 1, 1, None
    if site.width:
        return site.width, site.width, None
    if isinstance(input_module, nn.Embedding):
        rows, d_out = _shape(input_module)
        return rows, d_out, None
    outputs, (begin, end, of) = _shape(output_module if site.changes == "output" else input_module)[0], site.part
    columns = slice(outputs * begin // of, outputs * end // of)
    d_out = _shape(output_module)[-1] if site.changes == "input" else columns.stop - columns.start
    return _shape(input_module)[-1], d_out, None if site.part == WHOLE else columns


def _weight(module: nn.Module) -> Tensor:
    weight = module.get_parameter("weight")
    return weight.T if isinstance(module, Conv1D) else weight


def _shape(module: nn.Module) -> tuple[int, ...]:
    shape = shape_of(module.get_parameter("weight"))
    return shape[::-1] if isinstance(module, Conv1D) else shape


def _module(model: Any, site: str, path: str) -> nn.Module:
    try:
        module: nn.Module = model.get_submodule(path)
    except AttributeError as error:
        raise BackboneError(f"site {site!r} should be module {path!r}, which is not there: {error}") from None
    return module
