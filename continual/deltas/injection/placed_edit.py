"""What is done to a batch at one place: by which edit, with whose values, to which of its rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.compose import InPlaceComposition
from continual.deltas.edit import Edit
from continual.deltas.protocols import implements


@dataclass(frozen=True)
class RowRange:
    """Rows of a batch that follow each other: from `begin` to before `end`, of `count` in all."""

    begin: int
    end: int
    count: int

    def __len__(self) -> int:
        return self.end - self.begin

    def take(self, tensor: Tensor) -> Tensor:
        """These rows of what a batch has by rows, by tokens of all rows, or once for all rows."""
        return self._by_row(tensor)[self.begin : self.end]

    def replace_rows(self, tensor: Tensor, new: Tensor) -> Tensor:
        """The tensor with other values for these rows."""
        new = new.to(tensor.dtype)
        if len(self) < self.count:
            rows = self._by_row(tensor)
            new = torch.cat((rows[: self.begin], new, rows[self.end :]))
        return new.reshape(tensor.shape) if new.numel() == tensor.numel() else new

    def _by_row(self, tensor: Tensor) -> Tensor:
        """[B, …] of [B, …]; of [1, …] or, of positions, [T], where all rows have the same; of [B · T, …]."""
        if tensor.dim() == 1:
            return tensor.expand(self.count, -1)
        if tensor.shape[0] in (1, self.count):
            return tensor.expand(self.count, *tensor.shape[1:])
        return tensor.view(self.count, -1, *tensor.shape[1:])


@dataclass(frozen=True)
class PlacedEdit:
    """An edit at a place.

    make: the change that follows from what is seen there · rows: those that it is for; all where it is None.
    """

    place: Place
    edit: Edit
    compute_change: Callable[[Tensor], Tensor]
    rows: RowRange | None = None

    def __call__(self, tensor: Tensor, seen: Tensor) -> Tensor:
        """What the edit leaves of a tensor [B, T, d_out], given what it reads [B, T, d_read]."""
        if self.rows is None:
            return self.edit.compose(tensor, self.compute_change(seen))
        own, made, compose = self.rows.take(tensor), self.compute_change(self.rows.take(seen)), self.edit.compose
        # What a module has just returned is nobody else's, unless gradients need it.
        if self._owned(tensor, own) and implements(type(compose), InPlaceComposition):
            cast(InPlaceComposition, compose).apply_(own, made)
            return tensor
        return self.rows.replace_rows(tensor, compose(own, made))

    def _owned(self, tensor: Tensor, own: Tensor) -> bool:
        written = self.place.changes == "output" and not torch.is_grad_enabled()
        return (
            written and own.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() and own.is_contiguous()
        )
