"""Cache the output of the frozen layers below a delta's lowest edit, the same in every epoch.

    h_l(x) for all tokens of all texts x, with l the lowest layer that an edit changes

The states are kept on the device where they take at most `MAX_CACHE_BYTES` and no random number is drawn on the way:
with the backbone's own dropout they differ from epoch to epoch. They are computed before the first epoch, not in it,
so that a training resumed from a later epoch has the same states to the bit.

Shapes: B rows, T tokens, S tokens of all texts, D hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from continual.backbones.arguments import Call, bind_arguments
from continual.backbones.backbone import Backbone
from continual.backbones.layers import encoder_layers, replace_forward
from continual.deltas.delta import Delta
from continual.deltas.method import MethodSettings
from continual.deltas.values import iterate_edits
from continual.features.tokens import Tokens, pad, sorted_batches
from continual.training.state import get_rng_state, set_rng_state

MAX_CACHE_BYTES = 1 << 30  # of one training
TokenizedText = tuple[tuple[int, ...], ...]
"""The token ids of a text, and their types where the tokenizer has types."""
CachedStatesLookup = Callable[[Call], Tensor | None]
"""The states [B, T, D] for the arguments of a stack's call; None where a text is not cached."""


@dataclass(frozen=True)
class CachedStates:
    """The states of the tokens of texts, looked up by the texts of a batch.

    Attributes:
        states: [1 + S, D]: a row of zeros for padding, then the tokens of one text after another.
        offsets: The row of `states` at which each text begins.
    """

    states: Tensor
    offsets: Mapping[TokenizedText, int]

    def __call__(self, call: Call) -> Tensor | None:
        """Return the states [B, T, D] of a padded batch, zeros for padding; None where a text is not cached."""
        texts = _texts_of_call(call)
        if not all(text in self.offsets for text in texts):
            return None
        return self.states[_row_indices([self.offsets[text] for text in texts], call["attention_mask"])]


@dataclass(frozen=True)
class FrozenLayerCache:
    """The lowest, unedited layers of a backbone, for a training that reads texts several times.

    Attributes:
        backbone: The frozen backbone.
        layers: How many of its lowest layers no edit changes.
        read_tokens: Returns the texts that every epoch reads.
    """

    backbone: Backbone
    layers: int
    read_tokens: Callable[[], Tokens]

    @cached_property
    def _states(self) -> CachedStates | None:
        return compute_states(self.backbone, self.read_tokens(), layers=self.layers)

    @contextmanager
    def use_cache(self) -> Iterator[None]:
        """Skip the lowest layers for cached texts inside the block; fill the cache on first use."""
        if self._states is None:
            yield
        else:
            with skip_first_layers(self.backbone, self.layers, self._states):
                yield


def frozen_layer_cache(
    backbone: Backbone, delta: Delta, read_tokens: Callable[[], Tokens] | None
) -> FrozenLayerCache | None:
    """Build the cache for a delta; None where it edits the lowest layer or epochs' texts differ."""
    if read_tokens is None:
        return None
    read = delta.head.layers if delta.head and delta.head.layers else backbone.num_layers
    layers = min(count_unedited_layers(backbone, delta.settings), read)
    return FrozenLayerCache(backbone, layers, read_tokens) if layers else None


def compute_states(backbone: Backbone, tokens: Tokens, *, layers: int) -> CachedStates | None:
    """Compute the states of all texts after the lowest `layers` layers.

    Returns:
        The states; None where they are too large for the cache, or random (dropout).
    """
    tokens = tokens.take(list({text: index for index, text in enumerate(_texts_of_tokens(tokens))}.values()))
    ends = torch.tensor([0, *tokens.lengths]).cumsum(0) + 1
    offsets, size = ends[:-1].tolist(), int(ends[-1])
    if size * backbone.model.config.hidden_size * torch.float32.itemsize > MAX_CACHE_BYTES:
        return None
    cached: Tensor | None = None
    rng_state = get_rng_state(backbone.device)
    with torch.no_grad(), backbone.checkpoint_dropout():
        for indices in sorted_batches(tokens.lengths):
            batch = pad(backbone, tokens, indices)
            states = run_first_layers(backbone, layers, batch)
            if not _equal(rng_state, get_rng_state(backbone.device)):
                set_rng_state(rng_state, backbone.device)
                return None
            if cached is None:
                cached = states.new_zeros(size, states.shape[-1])
            rows = _row_indices([offsets[i] for i in indices], batch["attention_mask"])
            is_token = rows > 0
            cached[rows[is_token]] = states[is_token]
    return None if cached is None else CachedStates(cached, dict(zip(_texts_of_tokens(tokens), offsets, strict=True)))


def count_unedited_layers(backbone: Backbone, settings: MethodSettings) -> int:
    """Count the text-reading layers below the lowest edit; all of them where there is no edit.

    The count is 0 where an edit belongs to no layer, or where the lowest layer computes something for all others.
    """
    if any(site.is_shared for site in backbone.family.stack.sites.values()):
        return 0
    places = (place for place, _, _ in iterate_edits(backbone, settings))
    layers = (place.layer for place in places if not place.name.startswith("decoder.layer."))
    return min((layer or 0 for layer in layers), default=backbone.num_layers)


def run_first_layers(backbone: Backbone, count: int, batch: dict[str, Tensor]) -> Tensor:
    """Compute the states [B, T, D] of a padded batch after the lowest `count` layers, without those above."""
    outputs: list[Tensor] = []
    layers = encoder_layers(backbone)
    with ExitStack() as undo:
        last = layers[count - 1]
        undo.enter_context(last.register_forward_hook(lambda module, args, output: outputs.append(output)))
        for layer in layers[count:]:
            undo.enter_context(replace_forward(layer, lambda states, *args, **kwargs: states))
        with backbone.autocast():
            backbone.hidden_states(batch)
    return outputs[-1]


@contextmanager
def skip_first_layers(backbone: Backbone, count: int, lookup: CachedStatesLookup) -> Iterator[None]:
    """Take the output of the lowest `count` layers from `lookup` inside the block, where it has it.

    The embeddings and the layers above are computed as before.
    """
    states: Tensor | None = None

    def look_up(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal states
        states = lookup(bind_arguments(module, args, kwargs))

    def cached_or(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: forward(*args, **kwargs) if states is None else states

    stack = backbone.modules_at("tokens")[0].output_module
    with ExitStack() as undo:
        undo.enter_context(stack.register_forward_pre_hook(look_up, with_kwargs=True))
        for layer in encoder_layers(backbone)[:count]:
            undo.enter_context(replace_forward(layer, cached_or(layer.forward)))
        yield


def _texts_of_tokens(tokens: Tokens) -> list[TokenizedText]:
    if tokens.types is None:
        return [(ids,) for ids in tokens.ids]
    return list(zip(tokens.ids, tokens.types, strict=True))


def _texts_of_call(call: Call) -> list[TokenizedText]:
    """The texts of a batch that is padded on the right."""
    columns = [call[name].tolist() for name in ("input_ids", "token_type_ids") if call.get(name) is not None]
    lengths = call["attention_mask"].sum(dim=1).tolist()
    return [tuple(tuple(part[:length]) for part in row) for length, *row in zip(lengths, *columns, strict=True)]


def _row_indices(offsets: Sequence[int], mask: Tensor) -> Tensor:
    """The rows [B, T] of the cached states at which a batch's tokens are; 0 for padding."""
    first = torch.tensor(offsets, device=mask.device)
    return (first[:, None] + torch.arange(mask.shape[1], device=mask.device)) * mask


def _equal(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)
