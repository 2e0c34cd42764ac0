"""What the frozen layers below a delta's lowest edit make of its texts: the same in every epoch, so computed once.

    h_l(x) for all tokens of all texts x, l the lowest layer that an edit is in

They are kept on the device, where MOST_BYTES hold them and nothing is drawn at random on the way: where the
backbone's own dropout is at work, no two epochs have the same. They are computed before the first epoch and not in it,
so that training that goes on from a later one has the same to the bit.

Shapes: B rows, T tokens, S tokens of all texts, D hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from continual.backbones.backbone import Backbone
from continual.backbones.layers import encoder_layers, replace_forward
from continual.backbones.sites import Call, bind_arguments
from continual.deltas.method import MethodSettings
from continual.deltas.values import iterate_edits
from continual.features.tokens import Tokens, pad, sorted_batches
from continual.training.state import get_rng_state, set_rng_state

MAX_CACHE_BYTES = 1 << 30  # for one training
TokenizedText = tuple[tuple[int, ...], ...]  # the ids of a text's tokens, and their types where there are types
CachedStatesLookup = Callable[[Call], Tensor | None]  # of what a stack is called with


@dataclass(frozen=True)
class CachedStates:
    """States [1 + S, D] of the tokens of texts, one after the other behind zeros, and where each text begins."""

    states: Tensor
    offsets: Mapping[TokenizedText, int]

    def __call__(self, call: Call) -> Tensor | None:
        """The states [B, T, D] of a batch, zeros for padding; None where a text of it is not known."""
        texts = _texts(call)
        if not all(text in self.offsets for text in texts):
            return None
        return self.states[_places([self.offsets[text] for text in texts], call["attention_mask"])]


@dataclass(frozen=True)
class FrozenLayerCache:
    """The lowest `layers` layers, no edit in them, in a training that reads the same texts several times."""

    backbone: Backbone
    layers: int
    read_tokens: Callable[[], Tokens]

    @cached_property
    def _states(self) -> CachedStates | None:
        return compute_states(self.backbone, self.read_tokens(), layers=self.layers)

    @contextmanager
    def use_cache(self) -> Iterator[None]:
        """Inside, these layers are computed for no text that is among those read; the first time, for all of them."""
        if self._states is None:
            yield
        else:
            with skip_first_layers(self.backbone, self.layers, self._states):
                yield


def frozen_layer_cache(
    backbone: Backbone, settings: MethodSettings, reads: Callable[[], Tokens] | None
) -> FrozenLayerCache | None:
    """The layers below all edits of a method, where there are any and the texts are known."""
    layers = count_unedited_layers(backbone, settings) if reads else 0
    return FrozenLayerCache(backbone, layers, reads) if reads and layers else None


def compute_states(backbone: Backbone, tokens: Tokens, *, layers: int) -> CachedStates | None:
    """The states of all texts after so many layers; None where they are too many, or other ones every time."""
    tokens = tokens.take(list({text: number for number, text in enumerate(_own(tokens))}.values()))
    ends = torch.tensor([0, *tokens.lengths]).cumsum(0) + 1
    begins, size = ends[:-1].tolist(), int(ends[-1])
    if size * backbone.model.config.hidden_size * torch.float32.itemsize > MAX_CACHE_BYTES:
        return None
    found: Tensor | None = None
    before = get_rng_state(backbone.device)
    with torch.no_grad(), backbone.checkpoint_dropout():
        for chosen in sorted_batches(tokens.lengths):
            batch = pad(backbone, tokens, chosen)
            states = run_first_layers(backbone, layers, batch)
            if not _same(before, get_rng_state(backbone.device)):
                set_rng_state(before, backbone.device)
                return None
            if found is None:
                found = states.new_zeros(size, states.shape[-1])
            places = _places([begins[i] for i in chosen], batch["attention_mask"])
            own = places > 0
            found[places[own]] = states[own]
    return None if found is None else CachedStates(found, dict(zip(_own(tokens), begins, strict=True)))


def _own(tokens: Tokens) -> list[TokenizedText]:
    if tokens.types is None:
        return [(ids,) for ids in tokens.ids]
    return list(zip(tokens.ids, tokens.types, strict=True))


def _texts(call: Call) -> list[TokenizedText]:
    """The texts of a batch that is padded on the right."""
    columns = [call[name].tolist() for name in ("input_ids", "token_type_ids") if call.get(name) is not None]
    lengths = call["attention_mask"].sum(dim=1).tolist()
    return [tuple(tuple(part[:length]) for part in row) for length, *row in zip(lengths, *columns, strict=True)]


def _places(begins: Sequence[int], mask: Tensor) -> Tensor:
    """Where the states of a batch's tokens [B, T] are, those of padding at 0."""
    first = torch.tensor(begins, device=mask.device)
    return (first[:, None] + torch.arange(mask.shape[1], device=mask.device)) * mask


def _same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


def count_unedited_layers(backbone: Backbone, settings: MethodSettings) -> int:
    """How many layers that read a text lie below the lowest edit: all where there is none.

    None, where an edit is at something that belongs to no layer, or where the lowest layer makes something for all.
    """
    if any(site.common for site in backbone.family.stack.sites.values()):
        return 0
    places = (place for place, _, _ in iterate_edits(backbone, settings))
    reading = (place.layer for place in places if not place.name.startswith("decoder.layer."))
    return min((layer or 0 for layer in reading), default=backbone.layers)


def run_first_layers(backbone: Backbone, count: int, batch: dict[str, Tensor]) -> Tensor:
    """What the lowest `count` layers make of a batch [B, T, D]; those above are not computed."""
    found: list[Tensor] = []
    layers = encoder_layers(backbone)
    with ExitStack() as undo:
        last = layers[count - 1]
        undo.enter_context(last.register_forward_hook(lambda module, args, output: found.append(output)))
        for layer in layers[count:]:
            undo.enter_context(replace_forward(layer, lambda states, *args, **kwargs: states))
        with backbone.autocast():
            backbone.hidden_states(batch)
    return found[-1]


@contextmanager
def skip_first_layers(backbone: Backbone, count: int, known: CachedStatesLookup) -> Iterator[None]:
    """Inside, the lowest `count` layers are not computed for a batch of which it is known what comes out of them.

    What reads the tokens, and the layers above, are computed as ever; outside, everything is.
    """
    states: Tensor | None = None

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal states
        states = known(bind_arguments(module, args, kwargs))

    def instead(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: forward(*args, **kwargs) if states is None else states

    stack = backbone.modules_at("tokens")[0].output_module
    with ExitStack() as undo:
        undo.enter_context(stack.register_forward_pre_hook(ask, with_kwargs=True))
        for layer in encoder_layers(backbone)[:count]:
            undo.enter_context(replace_forward(layer, instead(layer.forward)))
        yield
