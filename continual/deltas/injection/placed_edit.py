"""An edit bound to a place, to values and to rows of a batch: the function that a hook applies.

Shapes: B rows of a batch, T tokens, d_read and d_out the last dimensions of an edit's input and change.
"""

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
    """Consecutive rows of a batch.

    Attributes:
        begin: First row.
        end: Row after the last.
        count: B, the number of rows of the whole batch.
    """

    begin: int
    end: int
    count: int

    def __len__(self) -> int:
        return self.end - self.begin

    def take(self, tensor: Tensor) -> Tensor:
        """Select these rows, [end − begin, …].

        Args:
            tensor: [B, …] by row; [B · T, …] by token of all rows; or [1, …] or [T], the same for all rows.
        """
        return self._by_row(tensor)[self.begin : self.end]

    def replace_rows(self, tensor: Tensor, new: Tensor) -> Tensor:
        """Return the tensor with these rows replaced, in its dtype.

        Args:
            tensor: [B, …], [B · T, …], [1, …] or [T], as for `take`.
            new: [end − begin, …].

        Returns:
            A tensor of the same shape, or [B, …] where the rows were the same and now differ.
        """
        new = new.to(tensor.dtype)
        if len(self) < self.count:
            rows = self._by_row(tensor)
            new = torch.cat((rows[: self.begin], new, rows[self.end :]))
        return new.reshape(tensor.shape) if new.numel() == tensor.numel() else new

    def _by_row(self, tensor: Tensor) -> Tensor:
        """View as [B, …] a tensor [B, …], [1, …], positions [T] common to all rows, or [B · T, …]."""
        if tensor.dim() == 1:
            return tensor.expand(self.count, -1)
        if tensor.shape[0] in (1, self.count):
            return tensor.expand(self.count, *tensor.shape[1:])
        return tensor.view(self.count, -1, *tensor.shape[1:])


@dataclass(frozen=True)
class PlacedEdit:
    """An edit at a place, with values.

    Attributes:
        place: The place.
        edit: The edit.
        compute_change: The form with its values: inputs [B, T, d_read] → change [B, T, d_out].
        rows: The rows that are changed; None for all.
    """

    place: Place
    edit: Edit
    compute_change: Callable[[Tensor], Tensor]
    rows: RowRange | None = None

    def __call__(self, tensor: Tensor, inputs: Tensor) -> Tensor:
        """Apply the edit to a tensor; without gradients the tensor may be changed in place.

        Args:
            tensor: The representation that is modified, [B, T, d_out].
            inputs: The input of the form, [B, T, d_read].

        Returns:
            The new representation, [B, T, d_out].
        """
        if self.rows is None:
            return self.edit.compose(tensor, self.compute_change(inputs))
        part, change = self.rows.take(tensor), self.compute_change(self.rows.take(inputs))
        compose = self.edit.compose
        # Nobody else holds a module's fresh output, unless gradients need it.
        if self._can_overwrite(tensor, part) and implements(type(compose), InPlaceComposition):
            cast(InPlaceComposition, compose).apply_(part, change)
            return tensor
        return self.rows.replace_rows(tensor, compose(part, change))

    def _can_overwrite(self, tensor: Tensor, part: Tensor) -> bool:
        """Return whether `part` is memory of `tensor`, a module's output that no gradient needs."""
        return (
            self.place.changes == "output"
            and not torch.is_grad_enabled()
            and part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            and part.is_contiguous()
        )
