"""Sites: the roles in a transformer at which edits are put, and the places that play them in one model.

A *site* is a role ("attn.q", "ffn", "norm.attn"); a family's table says which module plays it (`families`). Methods
name sites only, so a method works on every family whose table has them. A *place* is a site of one layer of one model.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from continual.backbones.quantization import is_quantized, shape_of
from continual.errors import BackboneError, MethodError

# What an edit changes there: what a module returns, what it is given, the keys and values of an attention, the tokens
# that a stack of layers reads.
Changes = Literal["output", "input", "attention", "tokens"]
Group = Literal["projections", "norms", "embeddings", ""]  # sites that methods may name together
Call = Mapping[str, Any]  # the arguments of a module's call by their names


@dataclass(frozen=True)
class Site:
    """One role in a family: the paths of its modules, `{}` standing for the number of the layer.

    enter: the module whose input an edit may read · exit: the module at which the change happens ·
    part: of a module that computes several projections at once, which of how many equal parts · argument: the one by
    which what is changed is given, where it is not the first · seen: how what enters follows from the call, where it is
    not that argument · common: whether what comes out is the same for all rows of a batch.
    """

    input_path: str
    output_path: str
    changes: Changes = "output"
    group: Group = ""
    part: tuple[int, int] = (0, 1)
    argument: str = ""
    read_input: Callable[[Call], Tensor] | None = None
    is_shared: bool = False


def projection(path: str, part: tuple[int, int] = (0, 1)) -> Site:
    """A linear layer, or a part of one."""
    return Site(path, path, "output", "projections", part)


def norm(path: str) -> Site:
    return Site(path, path, "output", "norms")


def embedding(path: str, rows: Callable[[Call], Tensor] | None = None, *, common: bool = False) -> Site:
    """A table of vectors; what enters it are the numbers of its rows."""
    return Site(path, path, "output", "embeddings", read_input=rows, is_shared=common)


def block(enter: str, exit: str) -> Site:
    """A block of several modules, from what enters the first to what the last returns."""
    return Site(enter, exit)


def module_input(path: str) -> Site:
    """What a module is given."""
    return Site(path, path, "input")


def attention_heads(query: str, out: str, part: tuple[int, int] = (0, 1)) -> Site:
    """What the heads of an attention return, side by side; what its queries are made of may be read."""
    return Site(query, out, "input", "", part)


def positions(path: str, argument: str = "", seen: Callable[[Call], Tensor] | None = None) -> Site:
    """Where tokens stand: the whole numbers that a position embedding or a rotary embedding is given."""
    return Site(path, path, "input", argument=argument, read_input=seen)


def attention(path: str, key: str, part: tuple[int, int] = (0, 1)) -> Site:
    """The keys and values of an attention; `key` is the projection that makes its keys."""
    return Site(key, path, "attention", "", part)


def tokens(words: str, stack: str) -> Site:
    """The tokens that a stack reads: `words` is its table of word vectors."""
    return Site(words, stack, "tokens")


@dataclass(frozen=True)
class Place:
    """A site of one layer.

    name: stable key, `layer.3.attn.q` · layer: None for what is there once · layers: how many its stack has ·
    d_in, d_out: last dimensions of what is read and of what is changed, d_in of an embedding its number of rows ·
    columns: its own of the module's output · heads: of each attention of its stack · argument, seen, common: as of
    its site.
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

    def input_of(self, args: Sequence[Any], kwargs: Call) -> Tensor:
        """What a call gives the module that is entered: hidden states [..., d_in], numbers of rows, or positions."""
        if self.read_input is None and not self.argument:
            given: Tensor = args[0]
            return given
        call = bind_arguments(self.input_module, args, kwargs)
        return call[self.argument] if self.read_input is None else self.read_input(call)

    def allow_positions_per_row(self) -> Iterator[RemovableHandle]:
        """A hook by which a module that takes positions [T] may be given [B, T], and returns [B, T, D] all the same."""

        def without_one_more(module: nn.Module, args: Sequence[Any], output: Any) -> Any:
            return output[0] if isinstance(output, Tensor) and output.dim() == 4 else output

        if self.argument:
            yield self.output_module.register_forward_hook(without_one_more, prepend=True)

    @property
    def is_hidden_state(self) -> bool:
        """Whether hidden states enter, and hidden states are changed: neither numbers nor keys and values."""
        return (
            self.changes in ("output", "input")
            and not self.argument
            and not isinstance(self.input_module, nn.Embedding)
        )

    @property
    def is_linear(self) -> bool:
        """Whether what leaves is what entered times one weight [d_out, d_in] that can be read, and perhaps a bias."""
        one = self.is_hidden_state and self.changes == "output" and self.input_module is self.output_module
        return one and self.has_readable_weight and self.module_weight.dim() == 2

    @property
    def has_readable_weight(self) -> bool:
        """Whether the weight of what is entered is there as it is: neither packed nor on the disk."""
        weight = self.input_module.get_parameter("weight")
        return not is_quantized(weight) and not weight.is_meta

    def frozen_forward(self, seen: Tensor) -> Tensor:
        """What the module that is entered makes of states [..., d_in] by itself: [..., d_out], without any edit."""
        if self.has_readable_weight:
            return F.linear(seen, self.weight, self.bias)
        whole: Tensor = self.input_module.forward(seen)  # not a call, which edits would be part of
        return whole if self.columns is None else whole[..., self.columns]

    @property
    def weight(self) -> Tensor:
        """The frozen weight: [d_out, d_in] of a projection, [rows, d_out] of an embedding, [d_out] of a norm."""
        weight = self.module_weight
        return weight if self.columns is None else weight[self.columns]

    @property
    def module_weight(self) -> Tensor:
        """The same of the whole module, its other parts' rows among them."""
        return _weight(self.input_module)

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias [d_out], where there is one."""
        bias: Tensor | None = getattr(self.input_module, "bias", None)
        return bias if bias is None or self.columns is None else bias[self.columns]


def expand_group(sites: Mapping[str, Site], name: str, *, family: str) -> tuple[str, ...]:
    """The sites that a name stands for: itself, or those of a group.

    Raises MethodError for a name that is neither.
    """
    found = (name,) if name in sites else tuple(key for key, site in sites.items() if name and site.group == name)
    if not found:
        groups = ", ".join(sorted({site.group for site in sites.values()} - {""}))
        raise MethodError(
            f"family {family!r} has no site {name!r}; it has: {', '.join(sites)}; and the groups: {groups}"
        )
    return found


def places_of(model: Any, name: str, site: Site, *, layers: int, heads: int, prefix: str = "") -> Iterator[Place]:
    """The places of a site, from the lowest layer to the highest; a layer that leaves the module out has none.

    Raises BackboneError where a module is not where it should be.
    """
    for layer in range(layers) if "{}" in site.output_path else (None,):
        enter, exit = (_module(model, name, path.format(layer)) for path in (site.input_path, site.output_path))
        if isinstance(enter, nn.Identity):
            continue
        where = f"{prefix}{name}" if layer is None else f"{prefix}layer.{layer}.{name}"
        d_in, d_out, columns = _dimensions(site, enter, exit)
        yield Place(
            where,
            name,
            layer,
            layers,
            enter,
            exit,
            site.changes,
            d_in,
            d_out,
            columns=columns,
            num_heads=heads,
            argument=site.argument,
            read_input=site.read_input,
            is_shared=site.is_shared,
        )


def _dimensions(site: Site, enter: nn.Module, exit: nn.Module) -> tuple[int, int, slice | None]:
    if site.argument:  # no vectors enter there
        return 1, 1, None
    read = _shape(enter)
    number, of = site.part
    if isinstance(enter, nn.Embedding):
        d_in, d_out = read
    elif site.changes == "input":
        d_in, d_out = read[-1], _shape(exit)[-1]
    else:
        d_in, d_out = read[-1], _shape(enter if site.changes == "attention" else exit)[0] // of
    columns = slice(number * d_out, (number + 1) * d_out) if of > 1 else None
    return d_in, d_out, columns


def bind_arguments(module: nn.Module, args: Sequence[Any], kwargs: Call) -> dict[str, Any]:
    """All arguments of a call by the names that they have in the module's `forward`."""
    return {**dict(zip(_parameters(type(module).forward), args, strict=False)), **kwargs}


def replace_argument(
    module: nn.Module, args: Sequence[Any], kwargs: Call, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call with another value for an argument, the first where no name is given; what was positional stays so."""
    number = _parameters(type(module).forward).index(name) if name else 0
    if number < len(args):
        return (*args[:number], value, *args[number + 1 :]), dict(kwargs)
    return tuple(args), {**kwargs, name: value}


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]  # without self


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
