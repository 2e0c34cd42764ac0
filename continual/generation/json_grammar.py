"""Answers that are JSON of a schema: tokens after which no valid document can follow are never chosen.

The grammar is that of llguidance (extra `json`). Shapes: V vocabulary.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.generation.passes import end_tokens
from tasks.errors import InputError

ANY_OBJECT = '{"type": "object"}'  # the schema of any JSON object
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as `json.dumps` writes
_TOKENIZERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # llguidance's form of each tokenizer; it takes a second


class JsonGrammar:
    """The tokens that may follow in one answer.

    Args:
        backbone: The backbone, for its tokenizer.
        schema: A JSON schema, as JSON.

    Raises:
        InputError: llguidance is not installed, the tokenizer is no fast one, or the schema is not valid.
    """

    def __init__(self, backbone: Backbone, schema: str) -> None:
        matcher = _llguidance().LLMatcher
        tokenizer, grammar = _tokenizer(backbone), matcher.grammar_from_json_schema(schema, overrides=_LAYOUT)
        if problem := matcher.validate_grammar(grammar, tokenizer):
            raise InputError(f"response_format: the schema cannot be followed: {problem:.300}; mend the schema")
        self._matcher, self._consumed = matcher(tokenizer, grammar), 0

    def allow(self, written: Sequence[int], scores: Tensor) -> Tensor:
        """Return scores [1, V] with −inf for the tokens that may not follow.

        Args:
            written: Tokens of the answer so far, those of the last call among them.
            scores: The scores.
        """
        self._matcher.consume_tokens([*written[self._consumed :]])
        self._consumed = len(written)
        words = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        allowed = (words.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
        size = scores.shape[-1]
        allowed = torch.cat((allowed, allowed.new_zeros(max(size - len(allowed), 0))))[:size]
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))


def object_schema(schema: Mapping[str, Any] | None) -> str:
    """Return a schema as JSON; that of any object where there is none."""
    return ANY_OBJECT if schema is None else json.dumps(schema)


def _llguidance() -> Any:
    try:
        import llguidance.hf
    except ImportError as error:
        raise InputError(
            "response_format: answers of a given form need llguidance, of the extra `json`; install it on the server: "
            "pip install 'continual-deltas[json]'"
        ) from error
    return llguidance


def _tokenizer(backbone: Backbone) -> Any:
    tokenizer = backbone.tokenizer
    if tokenizer not in _TOKENIZERS:
        try:
            _TOKENIZERS[tokenizer] = _llguidance().hf.from_tokenizer(tokenizer, eos_token=[*end_tokens(backbone)])
        except ValueError as error:
            raise InputError(
                f"response_format: the tokenizer of backbone {backbone.name!r} cannot be used for a grammar ({error}); "
                "ask without it"
            ) from error
    return _TOKENIZERS[tokenizer]
