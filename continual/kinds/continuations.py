"""Log probabilities of several continuations of each prompt by a causal language model, with the prompt read once.

    log p(w | x) = Σ_j log p(w_j | x, w_1 … w_{j−1})

The last token of a continuation need not be read, and one sequence serves all continuations that are its beginning with
one more token. Continuations of one token each are all read off the prompt's last state. Where they differ earlier, the
keys and values of the prompt are computed once, and each continuation is read behind them; in training, where states
below the lowest edit are cached by text, each is read with the prompt instead.

Shapes: B prompts, C continuations of a prompt, S sequences, K positions of a sequence, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.arguments import cache_argument
from continual.backbones.backbone import Backbone
from continual.generation.key_values import align_right, empty_cache
from continual.generation.padding import pad_batch, pad_ids
from continual.generation.passes import selected_states
from continual.generation.sampling import Ids

Branches = tuple[Ids, tuple[Ids, ...]]  # a prompt and its continuations
NO_TOKEN = -1


@dataclass(frozen=True)
class _Sequences:
    """The sequences that are read for some prompts.

    Attributes:
        prompts: The prompt of each [S].
        stems: What is read behind it, [S]: the beginnings of continuations, none of them the beginning of another.
        of_continuation: For each prompt and continuation, the sequence that begins with all of it but its last token.
    """

    prompts: tuple[Ids, ...]
    stems: tuple[Ids, ...]
    of_continuation: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> tuple[Ids, ...]:
        """The tokens of each sequence."""
        return tuple((*prompt, *stem) for prompt, stem in zip(self.prompts, self.stems, strict=True))


def _sequences(items: Sequence[Branches]) -> _Sequences:
    prompts: list[Ids] = []
    stems: list[Ids] = []
    of_continuation = []
    for prompt, continuations in items:
        first, prompt_stems = len(stems), _longest_stems(continuations)
        prompts += [prompt] * len(prompt_stems)
        stems += prompt_stems
        of_continuation.append(
            tuple(
                first + next(i for i, stem in enumerate(prompt_stems) if stem[: len(tokens) - 1] == tokens[:-1])
                for tokens in continuations
            )
        )
    return _Sequences(tuple(prompts), tuple(stems), tuple(of_continuation))


def _longest_stems(continuations: Sequence[Ids]) -> list[Ids]:
    """Return the continuations without their last tokens that are the beginning of no other such stem."""
    stems = dict.fromkeys(tokens[:-1] for tokens in continuations)
    return [
        stem for stem in stems if not any(len(longer) > len(stem) and longer[: len(stem)] == stem for longer in stems)
    ]


def sequence_ids(items: Sequence[Branches]) -> tuple[Ids, ...]:
    """Return the tokens of every sequence that `continuation_log_probs` reads for some prompts."""
    return _sequences(items).ids


def continuation_log_probs(backbone: Backbone, items: Sequence[Branches]) -> Tensor:
    """Compute the log probability of each continuation [B, C], in nats, through the backbone as it is now.

    Each sequence is read as a row of its own, so that gradients and cached states are those of whole texts.

    Args:
        backbone: The backbone, with one delta attached, or none.
        items: B prompts with at most C continuations each; a prompt with fewer has zeros behind them.
    """
    sequences = _sequences(items)
    width = max(map(len, sequences.stems)) + 1
    ends = torch.tensor([len(prompt) - 1 for prompt in sequences.prompts], device=backbone.device)
    lengths = torch.tensor([len(stem) for stem in sequences.stems], device=backbone.device)
    steps = torch.minimum(torch.arange(width, device=backbone.device), lengths[:, None])
    log_probs = _log_probs(backbone, pad_batch(backbone, sequences.ids), ends[:, None] + steps)
    return _summed(backbone, log_probs, items, sequences.of_continuation)


def forward_log_probs(backbone: Backbone, items: Sequence[Branches]) -> list[list[float]]:
    """Compute the log probabilities of each prompt's continuations, without gradient.

    The rows of every pass are the prompts in their order, so that a mixed batch of deltas may be attached.

    Args:
        backbone: The backbone, with the prompts' deltas attached.
        items: B prompts with their continuations.
    """
    stems = [_longest_stems(continuations) for _, continuations in items]
    if all(len(prompt_stems) == 1 for prompt_stems in stems):
        scores = continuation_log_probs(backbone, items)
    else:
        scores = _behind_shared_prompts(backbone, items)
    return [row[: len(continuations)] for row, (_, continuations) in zip(scores.tolist(), items, strict=True)]


def can_share_prompts(backbone: Backbone) -> bool:
    """Return whether a language model takes a cache of keys and values, by which a prompt is read once."""
    return backbone.architecture == "causal" and cache_argument(backbone.language_model) is not None


def _behind_shared_prompts(backbone: Backbone, items: Sequence[Branches]) -> Tensor:
    """Return the log probabilities [B, C]: one pass over the prompts, and one for each number of a stem."""
    prompts, device = [prompt for prompt, _ in items], backbone.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    cache, arguments = empty_cache(has_encoder=False), pad_batch(backbone, prompts)
    width = arguments["input_ids"].shape[1]
    arguments["position_ids"] = torch.arange(width, device=device).expand(len(prompts), -1)
    cached: dict[str, Any] = {str(cache_argument(backbone.language_model)): cache, "use_cache": True}
    first = _log_probs(backbone, arguments | cached, (lengths - 1)[:, None])
    soft_tokens = int(cache.get_seq_length()) - width  # vectors that the deltas put before the texts
    align_right(cache, [0] * len(prompts), (soft_tokens + lengths).tolist())
    prompt_keys_values = [(layer.keys, layer.values, layer.keys.shape[2]) for layer in cache.layers]
    is_prompt = torch.arange(width, device=device) >= width - lengths[:, None]
    sequences = _sequences(items)
    numbers = [[*dict.fromkeys(of_prompt)] for of_prompt in sequences.of_continuation]
    by_sequence: dict[int, Tensor] = {}
    for number in range(max(map(len, numbers))):
        rows = [
            of_prompt[min(number, len(of_prompt) - 1)] for of_prompt in numbers
        ]  # a row with fewer repeats its last one
        stems = [sequences.stems[row] or (backbone.tokenizer.pad_token_id,) for row in rows]
        for layer, (keys, values, columns) in zip(cache.layers, prompt_keys_values, strict=True):
            layer.hold(keys, values, columns)
        batch = pad_batch(backbone, stems)
        steps = torch.arange(batch["input_ids"].shape[1], device=device)
        batch["position_ids"] = lengths[:, None] + steps
        batch["attention_mask"] = torch.cat((is_prompt.long(), batch["attention_mask"]), dim=1)
        behind = _log_probs(backbone, batch | cached, steps.expand(len(rows), -1))
        by_sequence |= dict(zip(rows, torch.cat((first, behind), dim=1), strict=True))
    longest = max(len(rows) for rows in by_sequence.values())
    padded = [F.pad(rows, (0, 0, 0, longest - len(rows))) for _, rows in sorted(by_sequence.items())]
    return _summed(backbone, torch.stack(padded), items, sequences.of_continuation)


def _log_probs(backbone: Backbone, arguments: Mapping[str, Any], positions: Tensor) -> Tensor:
    """Run the language model; return the log probabilities [S, K, V] of the tokens behind some positions [S, K]."""
    with backbone.autocast(), selected_states(backbone, positions):
        logits: Tensor = backbone.language_model(**{"use_cache": False, **arguments}).logits
    return torch.log_softmax(logits.to(backbone.device).float(), dim=-1)


def _summed(
    backbone: Backbone, log_probs: Tensor, items: Sequence[Branches], of_continuation: Sequence[Sequence[int]]
) -> Tensor:
    """Sum the log probabilities [S, K, V] over the tokens of each continuation: [B, C]."""
    count = max(len(continuations) for _, continuations in items)
    flat = [
        (sequence, tokens, i * count + number)
        for i, ((_, continuations), of_prompt) in enumerate(zip(items, of_continuation, strict=True))
        for number, (tokens, sequence) in enumerate(zip(continuations, of_prompt, strict=True))
    ]
    tokens = pad_ids(backbone, [tokens for _, tokens, _ in flat], NO_TOKEN)
    rows = torch.tensor([sequence for sequence, _, _ in flat], device=tokens.device)
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    chosen = log_probs[rows[:, None], steps, tokens.clamp(min=0)].masked_fill(tokens == NO_TOKEN, 0.0)
    places = torch.tensor([place for _, _, place in flat], device=tokens.device)
    sums = chosen.new_zeros(len(items) * count).index_add(0, places, chosen.sum(dim=1))
    return sums.reshape(len(items), count)
