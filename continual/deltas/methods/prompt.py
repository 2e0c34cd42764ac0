"""Prompt tuning: learned word vectors before those of the text.

Shapes: P learned vectors, E the width of a word's vector, B rows of a batch, T tokens of the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from continual.backbones.sites import Place
from continual.deltas.compose import Concatenate
from continual.deltas.edit import Edit, Reads
from continual.deltas.method import MethodSettings, Preset
from continual.deltas.peft_format import PROMPT_TENSOR_NAME, ModuleLayout, PeftAdapter, PlacedModule
from continual.deltas.protocols import IdentityAtInit, Values
from continual.errors import ExchangeError


@dataclass(frozen=True)
class SoftPrompt:
    """P word vectors [P, E], which do not depend on the text.

    Attributes:
        length: P.
        initial: `vocabulary` to start as copies of random words, `random` to start as a normal with the deviation of
            the vocabulary's vectors.
    """

    identity: ClassVar[IdentityAtInit] = "none"

    length: int
    initial: Literal["random", "vocabulary"]

    def init_values(self, place: Place, d_read: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return words [P, E], drawn."""
        vocabulary = place.weight.cpu()
        if self.initial == "vocabulary":
            return {"words": vocabulary[torch.randint(len(vocabulary), (self.length,), generator=generator)].clone()}
        return {"words": vocabulary.std() * torch.randn(self.length, place.d_out, generator=generator)}

    def __call__(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Return words [P, E]; `inputs` is not read."""
        return values["words"]

    def canonical_form(self, values: Values, place: Place, *, scale: float) -> tuple["SoftPrompt", dict[str, Tensor]]:
        """Return the form without its initialization, and the same words [P, E]; `scale` has no effect."""
        return SoftPrompt(self.length, "random"), dict(values)

    def batched_call(self, values: Values, inputs: Tensor, place: Place) -> Tensor:
        """Return each row's words [B, P, E]."""
        return values["words"]


class Prompt(MethodSettings):
    """Prompt tuning: embeddings [p₁ … p_P; e(x₁) … e(x_T)] instead of e(x₁) … e(x_T), with learned p.

    The outputs are the states of the text.
    Parameters: P times the width of a word's vector. Lester et al. (2021), "The Power of Scale for Parameter-Efficient
    Prompt Tuning", arXiv:2104.08691, who start from the vocabulary.

    Attributes:
        length: P.
        initial: Start of the vectors, from random words of the vocabulary or from a normal.

    >>> Prompt(length=5).edits()[0].site
    'tokens'
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {"paper": {"length": 100, "initial": "vocabulary"}}

    length: int = Field(default=16, ge=1, le=256)
    initial: Literal["random", "vocabulary"] = "vocabulary"

    def edits(self) -> tuple[Edit, ...]:
        """Return one prompt before the tokens of the stack."""
        form = SoftPrompt(self.length, self.initial)
        return (Edit("tokens", form, Reads.INPUT, Concatenate(), added_tokens=self.length),)

    def to_peft(self, layout: ModuleLayout, values: Values) -> PeftAdapter:
        """Convert to one tensor `prompt_embeddings` [P, E].

        Raises:
            ExchangeError: The model is an encoder-decoder.
        """
        part = _single_part(layout.parts(self))
        model: Any = part.place.output_module
        config = {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": self.length,
            "token_dim": part.place.d_out,
            "num_layers": part.place.num_layers,
            "num_attention_heads": model.config.num_attention_heads,
            "num_transformer_submodules": 1,
        }
        return PeftAdapter(config, {PROMPT_TENSOR_NAME: values[f"{part.key}/words"]})

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert a PROMPT_TUNING adapter to settings and words [P, E]; None for one of another type.

        Raises:
            ExchangeError: Other tensors or settings, or the model is an encoder-decoder.
        """
        if adapter.config.get("peft_type") != "PROMPT_TUNING":
            return None
        adapter.require_supported_config("tokenizer_kwargs")  # it concerns initialization only
        settings = cls(length=adapter.config["num_virtual_tokens"])
        part = _single_part(layout.parts(settings))
        adapter.require_tensors({PROMPT_TENSOR_NAME: (settings.length, part.place.d_out)})
        return settings, {f"{part.key}/words": adapter.tensors[PROMPT_TENSOR_NAME].float()}


def _single_part(parts: Sequence[PlacedModule]) -> PlacedModule:
    stack: Any = parts[0].place.output_module
    if stack.config.is_encoder_decoder:
        raise ExchangeError("PEFT has no prompt that is before the encoder of an encoder-decoder alone")
    return parts[0]
