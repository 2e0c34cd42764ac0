"""Vectors of a delta's own before those of the words, in any stack that reads tokens.

Shapes: B rows, T tokens of the text, P the most vectors that are put before a row, E their size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from continual.backbones.backbone import Backbone
from continual.backbones.sites import Place, bind_arguments, replace_argument
from continual.deltas.injection.placed_edit import PlacedEdit, RowRange


@contextmanager
def prepend_soft_tokens(backbone: Backbone, changes: Sequence[PlacedEdit]) -> Iterator[None]:
    """Inside, the stack reads P more tokens, whose vectors the changes make, and returns the states of the others.

    A row that has fewer than P does not see what is in front of its own, and its positions begin there.
    """
    place, fronts = changes[0].place, _Fronts(changes, backbone.device)
    extended = False  # whether the pass that is under way begins the text; a cache holds what came before otherwise

    def extend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        nonlocal extended
        call = bind_arguments(module, args, kwargs)
        cache = call.get("past_key_values")
        before = 0 if cache is None else cache.get_seq_length()
        extended = before == 0
        if call.get("attention_mask") is None and fronts.gaps is not None:  # what no row was to ignore so far
            ids = call["input_ids"]
            seen = ids.shape[1] + max(before - fronts.longest, 0)
            call["attention_mask"] = torch.ones(len(ids), seen, dtype=torch.long, device=ids.device)
        return (), {**call, **_longer(call, fronts, begins=extended)}

    def replace(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return fronts.before(output[:, fronts.longest :]) if extended else output

    def shorten(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if extended:
            output.last_hidden_state = output.last_hidden_state[:, fronts.longest :]
        return output

    with (
        place.output_module.register_forward_pre_hook(extend, with_kwargs=True),
        place.input_module.register_forward_hook(replace),
        place.output_module.register_forward_hook(shorten),
        _positions_behind(backbone, place, fronts),
    ):
        yield


class _Fronts:
    """What is put before the rows of a batch: for those of each stretch, or for all, the changes' vectors.

    longest: P · gaps [B, 1]: how many of the P are not a row's own; None where all rows have as many.
    """

    def __init__(self, changes: Sequence[PlacedEdit], device: torch.device) -> None:
        self._device = device
        self._changes: dict[RowRange | None, list[PlacedEdit]] = {}
        for change in reversed(changes):  # a later edit's stand before those of the ones before it
            self._changes.setdefault(change.rows, []).append(change)
        with torch.no_grad():
            lengths = {rows: self._of(rows).shape[-2] for rows in self._changes}
        self.longest = max(lengths.values())
        self.gaps = self._gaps(lengths)

    def _of(self, rows: RowRange | None) -> Tensor:
        """The vectors [P, E], or [B, P, E] of B rows."""
        made = []
        for change in self._changes[rows]:
            nothing = torch.empty(0, change.place.d_out, device=self._device)
            made.append(change.compute_change(nothing if rows is None else nothing.expand(len(rows), *nothing.shape)))
        return torch.cat(made, dim=-2)

    def _gaps(self, lengths: Mapping[RowRange | None, int]) -> Tensor | None:
        whole = next(iter(lengths))
        if whole is None:
            return None
        gaps = torch.full((whole.count, 1), self.longest, device=self._device)
        for rows, length in lengths.items():
            assert rows is not None
            gaps[rows.begin : rows.end] -= length
        return gaps if bool(gaps.any()) else None

    def before(self, output: Tensor) -> Tensor:
        """[B, P + T, E] of word vectors [B, T, E]."""
        front = output.new_zeros(output.shape[0], self.longest, output.shape[2])
        for rows in self._changes:
            own = self._of(rows).to(output.dtype)
            front[slice(None) if rows is None else slice(rows.begin, rows.end), self.longest - own.shape[-2] :] = own
        return torch.cat((front, output), dim=1)

    def mask(self, given: Tensor) -> Tensor:
        """Which of the P [B, P] are a row's own, as the first column [B, 1] of a mask says it."""
        seen = torch.ones_like(given).expand(-1, self.longest)
        return seen if self.gaps is None else seen * (torch.arange(self.longest, device=given.device) >= self.gaps)


def _longer(call: Mapping[str, Any], fronts: _Fronts, *, begins: bool) -> dict[str, Tensor]:
    """The arguments of a stack with P tokens more at the front, each standing in for a vector."""
    makers = {
        "input_ids": lambda first: first.expand(-1, fronts.longest),
        "token_type_ids": lambda first: torch.zeros_like(first).expand(-1, fronts.longest),
        "attention_mask": fronts.mask,
    }
    used = [name for name in makers if call.get(name) is not None and (begins or name == "attention_mask")]
    longer = {name: torch.cat((makers[name](call[name][:, :1]), call[name]), dim=1) for name in used}
    positions = call.get("position_ids")
    if positions is not None:
        new = torch.arange(fronts.longest, device=positions.device).expand(len(positions), -1)
        behind = positions + fronts.longest
        longer["position_ids"] = torch.cat((new, behind), dim=1) if begins else behind
    return longer


@contextmanager
def _positions_behind(backbone: Backbone, tokens: Place, fronts: _Fronts) -> Iterator[None]:
    """Inside, the positions of a row begin at its own first token, where the model has positions.

    Some models count all tokens, some those that are not masked: how far a row is off is seen when a text begins.
    """
    stack, gaps = tokens.name.removesuffix(tokens.site), fronts.gaps
    if gaps is None or "positions" not in backbone.family.stack.sites:
        yield
        return
    (place,) = (place for place in backbone.modules_at("positions") if place.name == f"{stack}positions")
    off = torch.zeros_like(gaps)

    def move(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        nonlocal off
        seen = place.input_of(args, kwargs).expand(len(gaps), -1)
        if seen.shape[1] > fronts.longest:  # a text begins
            first = seen.gather(1, gaps)
            off = first - first.min()
        return replace_argument(module, args, kwargs, place.argument, (seen - off).clamp(min=0))

    with ExitStack() as undo:
        undo.enter_context(place.output_module.register_forward_pre_hook(move, prepend=True, with_kwargs=True))
        for handle in place.allow_positions_per_row():
            undo.enter_context(handle)
        yield
