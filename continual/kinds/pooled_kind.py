"""The base class of kinds that answer a text from its pooled vector.

Shapes: N rows, B rows of a batch, D hidden size.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features.forward import ForwardRequest
from continual.features.pooling import pooled_features
from continual.features.tokens import Tokens, pad
from continual.kinds.kind import ForwardContext, Kind, P


class PooledKind(Kind[P]):
    """A kind that answers a text from its pooled vector alone.

    One pass can then serve rows of several tasks, and the signature, the router and the head share the same vectors.
    """

    @abstractmethod
    def head_loss(self, head: Head, vectors: Tensor, rows: P, batch: Sequence[int]) -> Tensor:
        """Compute the loss of a batch from its pooled vectors.

        Args:
            head: The head to train.
            vectors: Pooled vectors [B, D] of the batch.
            rows: All prepared rows.
            batch: Indices of the B rows of the batch.

        Returns:
            A scalar, the mean over the rows of the batch.
        """

    def readout_loss(self, vectors: Tensor, rows: Sequence[P]) -> float | None:
        """Return the cross-validated loss of a closed-form head, by which the readout of the vectors is chosen.

        Args:
            vectors: Vectors [N, D] of rows in several parts, one after the other.
            rows: The parts, N rows in all.

        Returns:
            The loss; None, the default, to keep the backbone's readout.
        """
        return None

    def loss(self, backbone: Backbone, delta: Delta, rows: P, batch: Sequence[int]) -> Tensor:
        """Pool the batch [B, D] through the attached delta and return its `head_loss`, a scalar."""
        assert delta.head is not None
        vectors = pooled_features(backbone, pad(backbone, rows.tokens, batch), delta.head.readout)
        return self.head_loss(delta.head, vectors, rows, batch)

    def loss_inputs(self, backbone: Backbone, rows: P) -> Tokens:
        """Return the rows' own tokens."""
        return rows.tokens

    def loss_weight(self, rows: P, batch: Sequence[int]) -> float:
        """Return the number of rows of the batch."""
        return len(batch)

    def forward_request(self, context: ForwardContext[P], head: Head | None) -> ForwardRequest[Tensor]:
        """Request the pooled vectors [N, D]."""
        return context.pooled_request

    @torch.inference_mode()
    def loss_from(self, context: ForwardContext[P], delta: Delta, result: Tensor) -> float:
        """Compute the mean `head_loss` of the pooled vectors [N, D]."""
        assert delta.head is not None
        vectors = result.to(delta.head.weight.device)
        return float(self.head_loss(delta.head, vectors, context.rows, range(len(vectors))))
