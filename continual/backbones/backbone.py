"""The frozen pretrained transformer that all tasks share: loading, freezing, forward passes."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from continual.backbones.base_model import base_model
from continual.backbones.devices import DeviceSpec, device_map, device_of, is_split, resolve_device, resolve_dtype
from continual.backbones.families import Architecture, Family, family_of, resolve_places, text_configuration
from continual.backbones.families.recognition import require_residual_sums
from continual.backbones.fingerprint import fingerprint
from continual.backbones.finite_weights import require_finite_weights
from continual.backbones.hub import (
    Pooling,
    declared_pooling,
    resolve_source,
    silence_transformers,
    translate_load_errors,
)
from continual.backbones.quantization import (
    check_quantization,
    fix_compute_dtype,
    plain_name,
    quantization_config,
    quantization_digest,
    shape_of,
)
from continual.backbones.readout import Readout, first_layers, states_at_depths, states_behind
from continual.backbones.sites import OUTPUT_EMBEDDINGS, Place, table_place
from continual.errors import BackboneError
from registry import Bits, quantized_name

log = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 8192  # where neither the positions nor the tokenizer set a limit

_PLACES: WeakKeyDictionary[Any, dict[tuple[str, bool], tuple[Place, ...]]] = WeakKeyDictionary()
"""By model, the places of each site, without and with the decoder's."""
_AUTO_MODEL: Mapping[Architecture, Any] = {
    "encoder": AutoModel,
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
# Where a checkpoint of several modalities has its text model, and where the text model alone has it.
_TEXT_MODEL_KEYS = {
    r"^language_model\.lm_head": "lm_head",
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
}
# Architectures of encoders whose files have a masked language model.
_MASKED_LM_SUFFIXES = ("ForMaskedLM", "ForPreTraining")


@dataclass(frozen=True)
class Backbone:
    """A frozen transformer in eval mode, with its tokenizer.

    Attributes:
        name: Its name, with the bits of a quantised one: `minilm`, `minilm@8bit`, a hub id or a folder.
        model: The stacks of layers, without heads.
        tokenizer: The tokenizer; it has a padding token.
        family: The sites of its modules, and its sizes.
        fingerprint: Digest of configuration and weights, independent of paths, library versions and compute type.
        pooling: How the hidden states of a text's tokens become one vector.
        device: Where texts enter and hidden states are returned.
        dtype: Type of the matrix products and of the matrices; norms and biases are in float32.
        language_model: The language model that `model` is a part of, if there is one: the same modules, not a copy.
        split: Whether its layers are on several devices.
        generates: Whether texts are generated, so that edits go to the output embeddings and to the decoder of an
            encoder-decoder too; otherwise its encoder alone runs.
        reserved_tokens: Positions that a delta may take from the text.
    """

    name: str
    model: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    family: Family
    fingerprint: str
    pooling: Pooling
    device: torch.device
    dtype: torch.dtype
    language_model: Any = None  # transformers.PreTrainedModel
    split: bool = False
    generates: bool = False
    reserved_tokens: int = 0

    @property
    def architecture(self) -> Architecture:
        """Encoder, causal language model, or encoder-decoder."""
        return self.family.architecture

    @property
    def base_module(self) -> Any:
        """The module that the fingerprint covers: the generating language model, or the model without one.

        The head of a masked language model is left out: with and without it an encoder is the same backbone.
        """
        return self.model if self.language_model is None or self.architecture == "encoder" else self.language_model

    @property
    def hidden_size(self) -> int:
        """Dimensions of the last hidden states."""
        return self.family.hidden_size

    @property
    def parameter_count(self) -> int:
        """Number of parameters, counted before packing."""
        return sum(shape_of(weight).numel() for weight in self.base_module.parameters())

    @property
    def longest_input(self) -> int:
        """Largest number of tokens of a text, without those that a delta adds.

        The limit is the number of positions, else the tokenizer's limit, up to DEFAULT_MAX_TOKENS.
        """
        limit: int = self.family.max_positions or min(self.tokenizer.model_max_length, DEFAULT_MAX_TOKENS)
        return limit - self.reserved_tokens

    @property
    def num_layers(self) -> int:
        """Number of layers that read a text, without the decoder's of an encoder-decoder."""
        return self.family.stack.num_layers

    def modules_at(self, site: str) -> tuple[Place, ...]:
        """Return the places of a site or of a group of sites; see `resolve_places`.

        A backbone that generates has the site `embed.output` too, the table that scores the next token, in the group
        `embeddings`.

        Raises:
            MethodError: The family has no such site.
        """
        places, key = _PLACES.setdefault(self.model, {}), (site, self.generates)
        if key not in places:
            output = self._output_embeddings()
            tables = (output,) if output and site in (OUTPUT_EMBEDDINGS, "embeddings") else ()
            if tables and site == OUTPUT_EMBEDDINGS:
                places[key] = tables
            else:
                places[key] = resolve_places(self.model, self.family, site, generates=self.generates) + tables
        return places[key]

    def _output_embeddings(self) -> Place | None:
        table = self.language_model.get_output_embeddings() if self.generates and self.language_model else None
        return table and table_place(OUTPUT_EMBEDDINGS, table, num_layers=self.num_layers)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute matrix products in `dtype` inside the block; norms, softmax and sums are computed in float32."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield

    @contextmanager
    def checkpoint_dropout(self) -> Iterator[None]:
        """Enable the checkpoint's own dropout inside the block, at the rates of its configuration."""
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    @property
    def readout(self) -> Readout:
        """The readout of the frozen features: its pooling of the states behind all layers."""
        return Readout(self.pooling)

    def hidden_states(self, batch: dict[str, Tensor], *, layers: int | None = None) -> Tensor:
        """Return the last hidden states [B, T, D] of a padded batch, of an encoder-decoder the encoder's.

        Args:
            batch: The padded batch.
            layers: How many of the lowest layers run, as if there were no others; None for all.
        """
        with first_layers(self.model, self.family.stack, layers):
            states: Tensor = self._forward(batch).last_hidden_state
        return states.to(self.device)

    def hidden_states_at(self, batch: dict[str, Tensor], depths: Collection[int | None]) -> Mapping[int | None, Tensor]:
        """Return `hidden_states` [B, T, D] for several numbers of layers, by number, from one pass."""
        return states_at_depths(self.model, self.family.stack, depths, lambda: self.hidden_states(batch))

    def states_behind(self, batch: dict[str, Tensor], layer_states: Tensor) -> Tensor:
        """Return `hidden_states` [B, T, D] as if the last layer were the one with this output [B, T, D]."""
        return states_behind(self.model, self.family.stack, layer_states, lambda: self.hidden_states(batch))

    def layer_states(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the hidden states [B, T, D] after the embeddings and each layer, ending with `hidden_states`."""
        output = self._forward(batch, output_hidden_states=True)
        return tuple(states.to(self.device) for states in (*output.hidden_states[:-1], output.last_hidden_state))

    def _forward(self, batch: dict[str, Tensor], **options: bool) -> Any:
        stack = self.model.encoder if self.family.decoder else self.model
        cache = {"use_cache": False} if self.architecture == "causal" else {}  # no text is continued here
        return stack(**batch, **cache, **options)


def load_backbone(
    name: str | Path, *, device: DeviceSpec = "auto", dtype: str = "auto", bits: int | None = None
) -> Backbone:
    """Load a backbone and freeze it.

    Only safetensors weights are read, and no code from the hub is run.

    Args:
        name: A name (`minilm`, `mpnet`, `smollm2`), hub id or folder; `NAME@8bit` and `NAME@4bit` quantise it.
        device: A device, `auto`, `split` (fill all devices one after the other), or accelerate's device map.
        dtype: Type of the matrix products and of the matrices: `auto`, `float32` or `bfloat16`.
        bits: 8 or 4 to quantise it, as an alternative to the name.

    Raises:
        BackboneError: It cannot be found, has no safetensors weights, lacks weights or a vocabulary, has weights that
            are not finite, is of an unknown family, or cannot be quantised or split on this machine.
    """
    name = str(name)
    unquantized_name, resolved_bits = plain_name(name, bits)
    source, spread = resolve_source(unquantized_name), device_map(device)
    with translate_load_errors(name, source):
        whole = AutoConfig.from_pretrained(source, trust_remote_code=False)
        config = text_configuration(whole)
        family = family_of(config)
        target = resolve_device(device if isinstance(device, str) and not spread else "auto")
        compute_dtype = resolve_dtype(dtype, target, quantized=bool(resolved_bits))
        if check_quantization(config, name, resolved_bits, target):
            if spread:
                raise BackboneError(
                    f"backbone {name!r} is quantised, and such a one cannot be split; give it one device"
                )
            spread = {"": "cpu"}  # packed on the CPU, the weights are bit-identical on every device
        with silence_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            load = partial(_from_pretrained, source, config, dtype=compute_dtype, spread=spread, bits=resolved_bits)
            part = {} if config is whole else {"config": config, "key_mapping": _TEXT_MODEL_KEYS}
            model, missing = _load_model(load, config, family, part)
        pooling = declared_pooling(source)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers' default where its files are missing
            raise BackboneError(
                f"backbone {name!r} at {source!r} has no vocabulary; add its tokenizer files, as tokenizer.json"
            )
        if missing:
            raise BackboneError(f"backbone {name!r} lacks weights that its configuration needs: {sorted(missing)}")
        require_finite_weights(model, name)
        full_name = quantized_name(unquantized_name, resolved_bits)
        return freeze(model, tokenizer, name=full_name, pooling=pooling, device=str(target), dtype=dtype)


DeviceMap = str | Mapping[str, str | int] | None


def _load_model(
    load: Callable[[Any, Mapping[str, Any]], tuple[Any, set[str]]],
    config: Any,
    family: Family,
    part: Mapping[str, Any],
) -> tuple[Any, set[str]]:
    """Load the model, with its language modelling head if any; return the missing weights too.

    `part` are arguments that load the text model alone of a checkpoint of several modalities.
    """
    if family.architecture == "encoder" and any(
        name.endswith(_MASKED_LM_SUFFIXES) for name in config.architectures or ()
    ):
        model, missing = load(AutoModelForMaskedLM, {})
        if not missing:
            return model, missing
    return load(_AUTO_MODEL[family.architecture], {**family.load_arguments, **part})


def _from_pretrained(
    source: str,
    config: Any,
    auto_class: Any,
    arguments: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    spread: DeviceMap,
    bits: Bits | None,
) -> tuple[Any, set[str]]:
    """Load a model; its weights are in the type of its files where they are to be in less than float32 at last.

    The fingerprint is of these weights; a cast to the compute type must come after it.
    """
    placement: dict[str, Any] = {}
    if spread:
        folder = TemporaryDirectory(prefix="continual-")  # for the layers that fit no device's memory
        placement = {"device_map": spread, "offload_folder": folder.name}
    if bits:
        with torch.device("meta"):
            placement["quantization_config"] = quantization_config(bits, auto_class.from_config(config))
    model, info = auto_class.from_pretrained(
        source,
        dtype=torch.float32 if bits or dtype == torch.float32 else "auto",
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **placement,
        **arguments,
    )
    if spread:
        finalize(model, folder.cleanup)
    return model, set(info["missing_keys"])


def freeze(
    model: Any, tokenizer: Any, *, name: str, pooling: Pooling = "mean", device: str = "auto", dtype: str = "auto"
) -> Backbone:
    """Freeze a transformers model that is in memory, with or without its language modelling head.

    The model is changed in place. A tokenizer without a padding token pads with its end token.

    Args:
        model: The transformers model.
        tokenizer: Its tokenizer.
        name: Name of the backbone.
        pooling: How the hidden states of a text's tokens become one vector.
        device: The device to move it to, or `auto`; a split model stays where it is.
        dtype: Type of the matrix products and of the matrices: `auto`, `float32` or `bfloat16`.

    Raises:
        BackboneError: The family is unknown, or the tokenizer has neither a padding nor an end token.
    """
    split, family = is_split(model), family_of(model.config)
    target = device_of(model.get_input_embeddings()) if split else resolve_device(device)
    compute_dtype = resolve_dtype(dtype, target, quantized=bool(quantization_digest(model)))
    is_masked_lm = family.architecture == "encoder" and model.get_output_embeddings() is not None
    is_generator = family.architecture != "encoder" and model.can_generate()
    language_model = model if is_masked_lm or is_generator else None
    if is_generator:
        # A forced end token at the batch's length limit would make an answer depend on the other rows of the batch.
        model.generation_config.forced_eos_token_id = None
    _ensure_pad_token(tokenizer, name)
    model.requires_grad_(False).eval()
    fix_compute_dtype(model, compute_dtype)
    digest = fingerprint(model if is_generator else base_model(model))
    if not split:
        if not quantization_digest(model):
            cast_matrices(model, compute_dtype)
        model.to(target)
    backbone = Backbone(
        name=name,
        fingerprint=digest,
        model=base_model(model),
        language_model=language_model,
        tokenizer=tokenizer,
        family=family,
        pooling=pooling,
        device=target,
        dtype=compute_dtype,
        split=split,
    )
    if family.recognized_as:
        _confirm_family(backbone)
    return backbone


def _confirm_family(backbone: Backbone) -> None:
    """Try the layers of a family that was recognised by its modules, and say that it was."""
    with backbone.autocast():
        require_residual_sums(backbone.model, backbone.family)
    log.warning(
        "backbone %r is of family %r, which has no table of sites; its modules are those of %r, whose table is used",
        backbone.name,
        backbone.family.name,
        backbone.family.recognized_as,
    )


def cast_matrices(model: Any, dtype: torch.dtype) -> None:
    """Convert the matrices of a model in place; vectors (norms and biases) become float32."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype if weight.dim() > 1 else torch.float32)


def _ensure_pad_token(tokenizer: Any, name: str) -> None:
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BackboneError(
                f"the tokenizer of backbone {name!r} has no padding token and no end token; "
                "name one in its tokenizer_config.json, as pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token
