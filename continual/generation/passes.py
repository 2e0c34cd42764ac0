"""The passes of a language model that writes: the first one over a prompt, and one for each further token.

The caller has attached the rows' deltas. Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from continual.backbones.arguments import replace_argument, require_cache_argument
from continual.backbones.backbone import Backbone
from continual.generation.key_values import KeyValues, align_right, empty_cache
from continual.generation.padding import pad_batch
from continual.generation.sampling import Ids


def end_tokens(backbone: Backbone) -> frozenset[int]:
    """Return the tokens that end an answer: the tokenizer's, and those of the model's generation settings."""
    declared = backbone.language_model.generation_config.eos_token_id
    declared = declared if isinstance(declared, (list, tuple)) else [declared]
    return frozenset(token for token in (backbone.tokenizer.eos_token_id, *declared) if token is not None)


def first_tokens(backbone: Backbone) -> Ids:
    """Return the tokens with which a decoder begins to write; none where the prompt itself is continued."""
    if backbone.architecture == "causal":
        return ()
    model = backbone.language_model
    starts = (model.generation_config.decoder_start_token_id, model.config.decoder_start_token_id)
    return (next(start for start in starts if start is not None),)


def read_prompts(
    backbone: Backbone, prompts: Sequence[Ids], written: Sequence[Ids], soft_tokens: Sequence[int]
) -> tuple[Tensor, KeyValues]:
    """Read the prompts of B rows, and what was written behind each already.

    Texts are padded on the right, so that none of their tokens attends to padding.

    Args:
        backbone: The backbone, with the rows' deltas attached.
        prompts: Tokens of each prompt.
        written: Tokens of each answer so far.
        soft_tokens: How many vectors each row's delta puts before the tokens that the model writes behind.

    Returns:
        The logits [B, V] of each row's next token, and the cache.
    """
    causal = backbone.architecture == "causal"
    begin, cache = first_tokens(backbone), empty_cache(has_encoder=not causal)
    texts = [
        (*prompt, *answer) if causal else (*begin, *answer) for prompt, answer in zip(prompts, written, strict=True)
    ]
    arguments: dict[str, Tensor] = pad_batch(backbone, texts)
    if causal:
        positions = torch.arange(arguments["input_ids"].shape[1], device=backbone.device)
        arguments["position_ids"] = positions.expand(len(texts), -1)
    else:
        decoder = {f"decoder_{name}": tensor for name, tensor in arguments.items()}
        arguments = pad_batch(backbone, prompts) | decoder
    last = torch.tensor([len(text) - 1 for text in texts], device=backbone.device)
    with selected_states(backbone, last[:, None]):
        logits = _forward(backbone, cache, arguments)
    self_attention = cache if causal else cache.self_attention_cache
    longest = max(soft_tokens)
    begins, ends = [longest - count for count in soft_tokens], [longest + len(text) for text in texts]
    starts = torch.tensor(align_right(self_attention, begins, ends), device=backbone.device)
    encoded = None if causal else torch.tensor([len(prompt) for prompt in prompts], device=backbone.device)
    return logits, KeyValues(cache, starts, encoded)


def read_on(backbone: Backbone, texts: Sequence[Ids], key_values: KeyValues) -> tuple[Tensor, KeyValues]:
    """Read what follows in B rows of a causal model whose beginnings are in the cache.

    Args:
        backbone: The backbone, with the rows' deltas attached as `continued`.
        texts: Tokens of each row behind those in the cache, at least one.
        key_values: The cache, which is used up.

    Returns:
        The logits [B, V] of each row's next token, and the cache.
    """
    arguments, width = pad_batch(backbone, texts), key_values.width
    read = (key_values.width - key_values.starts).unsqueeze(1)
    arguments["position_ids"] = read + torch.arange(arguments["input_ids"].shape[1], device=backbone.device)
    arguments["attention_mask"] = torch.cat((key_values.mask(added=0), arguments["attention_mask"]), dim=1)
    last = torch.tensor([len(text) - 1 for text in texts], device=backbone.device)
    with selected_states(backbone, last[:, None]):
        logits = _forward(backbone, key_values.cache, arguments)
    begins: list[int] = key_values.starts.tolist()
    starts = align_right(key_values.cache, begins, [width + len(text) for text in texts])
    return logits, KeyValues(key_values.cache, torch.tensor(starts, device=backbone.device))


def write_tokens(backbone: Backbone, tokens: Sequence[int], key_values: KeyValues) -> Tensor:
    """Append one token to each of B rows, whose vectors before the text are in the cache.

    Returns:
        The logits [B, V] of each row's next token.
    """
    device = backbone.device
    ids = torch.tensor(tokens, device=device).unsqueeze(1)
    mask, positions = key_values.mask(added=1), (key_values.width - key_values.starts).unsqueeze(1)
    if backbone.architecture == "causal":
        arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return _forward(backbone, key_values.cache, arguments)
    # Its keys and values are in the cache: of the encoder's states only the shape is read.
    shape = (len(tokens), key_values.encoded_width, backbone.language_model.config.d_model)
    states = torch.zeros((), device=device).expand(shape)
    arguments = {
        "encoder_outputs": BaseModelOutput(last_hidden_state=states),
        "attention_mask": key_values.encoder_mask(),
        "decoder_input_ids": ids,
        "decoder_attention_mask": mask,
    }
    with _decoder_positions(backbone, positions):
        return _forward(backbone, key_values.cache, arguments)


def _forward(backbone: Backbone, cache: Any, arguments: dict[str, Any]) -> Tensor:
    model = backbone.language_model
    with backbone.autocast():
        output = model(**arguments, **{require_cache_argument(model): cache}, use_cache=True)
    logits: Tensor = output.logits[:, -1].to(backbone.device)
    return logits


@contextmanager
def selected_states(backbone: Backbone, positions: Tensor) -> Iterator[None]:
    """Compute the logits [B, K, V] of some tokens of each row alone inside the block, those at positions [B, K].

    A vocabulary is so large that the logits of all tokens would take longer than the layers.
    """

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, *others = args
        index = positions.to(states.device)
        return states[torch.arange(len(states), device=states.device)[:, None], index], *others

    handle = backbone.language_model.get_output_embeddings().register_forward_pre_hook(select, prepend=True)
    with handle:
        yield


@contextmanager
def _decoder_positions(backbone: Backbone, positions: Tensor) -> Iterator[None]:
    """Give each row of a decoder its own positions [B, T] inside the block, where it has any."""

    def replace_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return replace_argument(module, args, kwargs, argument, positions)

    with ExitStack() as undo:
        if backbone.family.decoder and "positions" in backbone.family.decoder.sites:
            (place,) = (place for place in backbone.modules_at("positions") if place.name == "decoder.positions")
            module, argument = place.output_module, place.argument
            undo.enter_context(module.register_forward_pre_hook(replace_positions, prepend=True, with_kwargs=True))
            for handle in place.allow_positions_per_row():
                undo.enter_context(handle)
        yield
