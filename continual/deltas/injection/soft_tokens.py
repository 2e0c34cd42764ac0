"""Prepend learned vectors to the token embeddings of any stack that reads tokens.

Shapes: B rows, T tokens of the text, P the most vectors prepended to a row, E the embedding size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from continual.backbones.arguments import Call, bind_arguments, cache_of, replace_argument, require_cache_argument
from continual.backbones.backbone import Backbone
from continual.backbones.sites import Place
from continual.deltas.injection.placed_edit import PlacedEdit, RowRange


@contextmanager
def prepend_soft_tokens(backbone: Backbone, changes: Sequence[PlacedEdit]) -> Iterator[None]:
    """Prepend the vectors that `changes` compute inside the block.

    The stack still returns the states of the text alone.

    A row with fewer than P vectors does not attend to the padding before its own, and its positions begin behind it.
    Where texts are padded on the left, as in generation, the vectors stand behind that padding, next to the text, so
    that layers with a window, chunks or a state see them as in a row alone. With a key-value cache the vectors are
    prepended once, to the first tokens of the text.

    Raises:
        BackboneError: The stack of a model that generates takes no cache under a known name, so that vectors would be
            prepended again at every step.
    """
    place, prefix = changes[0].place, _SoftTokens(changes, backbone.device)
    if backbone.architecture == "causal":
        require_cache_argument(place.output_module)
    pads_on_the_left = backbone.generates and backbone.architecture == "causal"
    order: Tensor | None = None  # of vectors and text in that pass; None for vectors first

    def extend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        nonlocal order
        call = bind_arguments(module, args, kwargs)
        cache = cache_of(call)
        cached = 0 if cache is None else cache.get_seq_length()
        prefix.starts_text = cached == 0
        if call.get("attention_mask") is None and prefix.padding is not None:  # every token of the text is attended to
            ids = call["input_ids"]
            length = ids.shape[1] + max(cached - prefix.length, 0)
            call["attention_mask"] = torch.ones(len(ids), length, dtype=torch.long, device=ids.device)
        order = _behind_left_padding(call, prefix) if pads_on_the_left else None
        return (), {**call, **_extended_arguments(call, prefix, order)}

    def replace_embeddings(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not prefix.starts_text:
            return output
        extended = prefix.prepend(output[:, prefix.length :])
        return extended if order is None else _rearrange(extended, order)

    def drop_prefix(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if prefix.starts_text:
            output.last_hidden_state = output.last_hidden_state[:, prefix.length :]
        return output

    with (
        place.output_module.register_forward_pre_hook(extend, with_kwargs=True),
        place.input_module.register_forward_hook(replace_embeddings),
        place.output_module.register_forward_hook(drop_prefix),
        _shifted_positions(backbone, place, prefix),
    ):
        yield


class _SoftTokens:
    """The vectors prepended to the rows of a batch, by range of rows or the same for all.

    Attributes:
        length: P.
        starts_text: Whether the pass under way reads the first tokens; later ones find the others in the cache.
        padding: How many of the P a row has not, [B, 1]; None where all rows have as many.
    """

    def __init__(self, changes: Sequence[PlacedEdit], device: torch.device) -> None:
        self._device, self.starts_text = device, False
        self._changes: dict[RowRange | None, list[PlacedEdit]] = {}
        for change in reversed(changes):  # the vectors of a later edit stand before those of earlier ones
            self._changes.setdefault(change.rows, []).append(change)
        with torch.no_grad():
            lengths = {rows: self._vectors(rows).shape[-2] for rows in self._changes}
        self.length = max(lengths.values())
        self.padding = self._padding(lengths)

    def prepend(self, embeddings: Tensor) -> Tensor:
        """Return [B, P + T, E] from the embeddings [B, T, E] of the text."""
        prefix = embeddings.new_zeros(embeddings.shape[0], self.length, embeddings.shape[2])
        for rows in self._changes:
            vectors = self._vectors(rows).to(embeddings.dtype)
            row_slice = slice(None) if rows is None else slice(rows.begin, rows.end)
            prefix[row_slice, self.length - vectors.shape[-2] :] = vectors
        return torch.cat((prefix, embeddings), dim=1)

    def mask(self, column: Tensor) -> Tensor:
        """Return the attention mask [B, P] of the prefix, of the type of a mask's first column [B, 1]."""
        ones = torch.ones_like(column).expand(-1, self.length)
        return (
            ones if self.padding is None else ones * (torch.arange(self.length, device=column.device) >= self.padding)
        )

    def _vectors(self, rows: RowRange | None) -> Tensor:
        """The vectors of a range of rows: [P, E], or [B, P, E] where they differ between rows."""
        parts = []
        for change in self._changes[rows]:
            empty = torch.empty(0, change.place.d_out, device=self._device)
            parts.append(change.compute_change(empty if rows is None else empty.expand(len(rows), *empty.shape)))
        return torch.cat(parts, dim=-2)

    def _padding(self, lengths: Mapping[RowRange | None, int]) -> Tensor | None:
        first = next(iter(lengths))
        if first is None:
            return None
        padding = torch.full((first.count, 1), self.length, device=self._device)
        for rows, length in lengths.items():
            assert rows is not None
            padding[rows.begin : rows.end] -= length
        return padding if bool(padding.any()) else None


def _behind_left_padding(call: Call, prefix: _SoftTokens) -> Tensor | None:
    """The order [B, P + T] that puts the vectors of each row behind the padding on its left; None without a mask."""
    mask = call.get("attention_mask")
    if mask is None:
        return None
    padding = (mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
    place = torch.arange(prefix.length + mask.shape[1], device=mask.device).expand(len(mask), -1)
    moved = torch.where(place < padding, place + prefix.length, place - padding)
    return torch.where(place < padding + prefix.length, moved, place)


def _rearrange(tensor: Tensor, order: Tensor) -> Tensor:
    """Return a tensor [B, N, …] with the tokens of each row in the order [B, N]."""
    return tensor[torch.arange(len(tensor), device=tensor.device)[:, None], order]


def _extended_arguments(call: Call, prefix: _SoftTokens, order: Tensor | None) -> dict[str, Tensor]:
    """The arguments of a stack with P more tokens in front, each a placeholder for a vector."""
    placeholders = {
        "input_ids": lambda column: column.expand(-1, prefix.length),
        "token_type_ids": lambda column: torch.zeros_like(column).expand(-1, prefix.length),
        "attention_mask": prefix.mask,
    }
    names = [n for n in placeholders if call.get(n) is not None and (prefix.starts_text or n == "attention_mask")]
    extended = {name: torch.cat((placeholders[name](call[name][:, :1]), call[name]), dim=1) for name in names}
    positions = call.get("position_ids")
    if positions is not None:
        prefix_positions = torch.arange(prefix.length, device=positions.device).expand(len(positions), -1)
        text_positions = positions + prefix.length
        extended["position_ids"] = (
            torch.cat((prefix_positions, text_positions), dim=1) if prefix.starts_text else text_positions
        )
    if order is not None:
        arranged = ("attention_mask", "position_ids") if prefix.starts_text else ("attention_mask",)
        extended |= {name: _rearrange(extended[name], order) for name in arranged if name in extended}
    return extended


@contextmanager
def _shifted_positions(backbone: Backbone, tokens: Place, prefix: _SoftTokens) -> Iterator[None]:
    """Begin a row's positions at its own first vector inside the block, where the model has positions.

    Some models count all tokens, some those that are not masked: the shift of each row is read off its first tokens.
    """
    stack, padding = tokens.name.removesuffix(tokens.site), prefix.padding
    if padding is None or "positions" not in backbone.family.stack.sites:
        yield
        return
    (place,) = (place for place in backbone.modules_at("positions") if place.name == f"{stack}positions")
    shift = torch.zeros_like(padding)

    def shift_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        nonlocal shift
        positions = place.input_of(args, kwargs).expand(len(padding), -1)
        if prefix.starts_text:
            first = positions.gather(1, padding)
            shift = first - first.min()
        return replace_argument(module, args, kwargs, place.argument, (positions - shift).clamp(min=0))

    with ExitStack() as undo:
        hook = place.output_module.register_forward_pre_hook(shift_positions, prepend=True, with_kwargs=True)
        undo.enter_context(hook)
        for handle in place.allow_positions_per_row():
            undo.enter_context(handle)
        yield
