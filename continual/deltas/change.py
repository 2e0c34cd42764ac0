"""What is done to a batch at one place: by which edit, with whose values, to which of its rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from continual.deltas.edit import Edit, InPlace, follows
from continual.sites import Place


@dataclass(frozen=True)
class Stretch:
    """Rows of a batch that follow each other: from `begin` to before `end`, of `count` in all."""

    begin: int
    end: int
    count: int

    def __len__(self) -> int:
        return self.end - self.begin

    def of(self, tensor: Tensor) -> Tensor:
        """These rows of what a batch has by rows, by tokens of all rows, or once for all rows."""
        return self._by_row(tensor)[self.begin : self.end]

    def replaced(self, tensor: Tensor, new: Tensor) -> Tensor:
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
class Change:
    """An edit at a place.

    make: the change that follows from what is seen there · rows: those that it is for; all where it is None.
    """

    place: Place
    edit: Edit
    make: Callable[[Tensor], Tensor]
    rows: Stretch | None = None

    def __call__(self, tensor: Tensor, seen: Tensor) -> Tensor:
        """What the edit leaves of a tensor [B, T, d_out], given what it reads [B, T, d_read]."""
        if self.rows is None:
            return self.edit.compose(tensor, self.make(seen))
        own, made, compose = self.rows.of(tensor), self.make(self.rows.of(seen)), self.edit.compose
        # What a module has just returned is nobody else's, unless gradients need it.
        if self._owned(tensor, own) and follows(type(compose), InPlace):
            cast(InPlace, compose).into(own, made)
            return tensor
        return self.rows.replaced(tensor, compose(own, made))

    def _owned(self, tensor: Tensor, own: Tensor) -> bool:
        written = self.place.changes == "output" and not torch.is_grad_enabled()
        return (
            written and own.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() and own.is_contiguous()
        )
