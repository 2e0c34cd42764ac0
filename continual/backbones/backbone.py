"""The frozen pretrained transformer that all tasks share: load it, freeze it, know it again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from continual.backbones.devices import DeviceSpec, device_map, device_of, is_split, resolve_device, resolve_dtype
from continual.backbones.families import Architecture, Family, family_of, resolve_places
from continual.backbones.fingerprint import fingerprint
from continual.backbones.hub import Pooling, declared_pooling, load_error, resolve_source, silence_transformers
from continual.backbones.quantization import (
    check_quantization,
    fix_compute_dtype,
    plain_name,
    quantization_config,
    quantization_digest,
    shape_of,
)
from continual.backbones.sites import Place
from continual.errors import BackboneError
from registry import Bits, quantized_name

DEFAULT_MAX_TOKENS = 8192  # tokens, where neither the positions nor the tokenizer set a limit

_PLACES: WeakKeyDictionary[Any, dict[tuple[str, bool], tuple[Place, ...]]] = WeakKeyDictionary()  # by model
_AUTO_MODEL: Mapping[Architecture, Any] = {
    "encoder": AutoModel,
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
_MASKED = ("ForMaskedLM", "ForPreTraining")  # checkpoints of encoders whose files hold a masked language model


@dataclass(frozen=True)
class Backbone:
    """A frozen transformer in eval mode, with its tokenizer.

    model: the stacks of layers, without heads · lm: the language model that they are part of, where there is one; the
    same modules, not a copy · fingerprint: digest of configuration and weights; independent of paths, library versions
    and compute type · pooling: how a text's vector is made of its tokens' hidden states · device: where texts enter and
    states come out · dtype: type of the matrix products · split: whether its layers are on several devices ·
    generates: whether edits go to the decoder of an encoder-decoder too; else nothing but its encoder runs ·
    reserved: how many positions a delta may take from the text.
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
    edits_decoder: bool = False
    reserved_tokens: int = 0

    @property
    def architecture(self) -> Architecture:
        return self.family.architecture

    @property
    def base_module(self) -> Any:
        """What the fingerprint covers: the language model that writes, or the model where there is none.

        The head of a masked language model is left out: with and without it an encoder is the same backbone.
        """
        return self.model if self.language_model is None or self.architecture == "encoder" else self.language_model

    @property
    def hidden_size(self) -> int:
        """Dimensions of the last hidden states."""
        return self.family.hidden_size

    @property
    def parameter_count(self) -> int:
        """How many numbers its weights stand for, packed or not."""
        return sum(shape_of(weight).numel() for weight in self.base_module.parameters())

    @property
    def longest_input(self) -> int:
        """The largest number of tokens of a text, those that a delta adds left out.

        It is what the positions take, else what the tokenizer says, else LONGEST_INPUT.
        """
        return (
            self.family.max_positions or min(self.tokenizer.model_max_length, DEFAULT_MAX_TOKENS)
        ) - self.reserved_tokens

    @property
    def num_layers(self) -> int:
        """How many layers read a text; the decoder's of an encoder-decoder are not counted."""
        return self.family.stack.num_layers

    def modules_at(self, site: str) -> tuple[Place, ...]:
        """The places of a site or of a group of sites; see `families.places`."""
        known, key = _PLACES.setdefault(self.model, {}), (site, self.edits_decoder)
        if key not in known:
            known[key] = resolve_places(self.model, self.family, site, generates=self.edits_decoder)
        return known[key]

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Matrix products inside run in `dtype`; weights, norms and sums stay in float32."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield

    @contextmanager
    def checkpoint_dropout(self) -> Iterator[None]:
        """Inside, the checkpoint's own dropout is at work, at the rates of its configuration; nothing else changes."""
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        """Last hidden states [B, T, D] of a tokenized batch; those of the encoder, where there is a decoder too."""
        states: Tensor = self._read(batch).last_hidden_state
        return states.to(self.device)

    def layer_states(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The same [B, T, D] after the embeddings and after every layer, the last hidden states at the end."""
        read = self._read(batch, output_hidden_states=True)
        return tuple(states.to(self.device) for states in (*read.hidden_states[:-1], read.last_hidden_state))

    def _read(self, batch: dict[str, Tensor], **options: bool) -> Any:
        reader = self.model.encoder if self.family.decoder else self.model
        alone = {"use_cache": False} if self.architecture == "causal" else {}  # no text is continued here
        return reader(**batch, **alone, **options)


def load_backbone(
    name: str | Path, *, device: DeviceSpec = "auto", dtype: str = "auto", bits: int | None = None
) -> Backbone:
    """Load a backbone by name (`minilm`), hub id or folder, and freeze it.

    device: `split` fills all devices one after the other · bits: 8 or 4, as `NAME@8bit` and `NAME@4bit` say it too.
    Only safetensors weights are read and no code from the hub is run.

    Raises BackboneError when it cannot be found, has no safetensors weights, lacks weights, is of an unknown family, or
    cannot be quantised or split here.
    """
    name = str(name)
    plain, packed = plain_name(name, bits)
    where, spread = resolve_source(plain), device_map(device)
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise load_error(name, where, error) from error
    family, home = family_of(config), resolve_device(device if isinstance(device, str) and not spread else "auto")
    if check_quantization(config, name, packed, home):
        if spread:
            raise BackboneError(f"backbone {name!r} is quantised, and such a one cannot be split; give it one device")
        spread = {"": "cpu"}  # packed there, the weights are the same to the bit wherever they go
    try:
        with silence_transformers():
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            model, missing = _load_model(where, config, family, spread, packed)
        pooling = declared_pooling(where)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise load_error(name, where, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what is made where there are no files for one
        raise BackboneError(
            f"backbone {name!r} at {where!r} has no vocabulary; add its tokenizer files, as tokenizer.json"
        )
    if missing:
        raise BackboneError(f"backbone {name!r} lacks weights that its configuration needs: {sorted(missing)}")
    return freeze(model, tokenizer, name=quantized_name(plain, packed), pooling=pooling, device=str(home), dtype=dtype)


DeviceMap = str | Mapping[str, str | int] | None


def _load_model(where: str, config: Any, family: Family, spread: DeviceMap, bits: Bits | None) -> tuple[Any, set[str]]:
    """The model with its language modelling head, where its files have one, and the weights that they lack."""
    load = partial(_from_pretrained, where, config, spread=spread, bits=bits)
    if family.architecture == "encoder" and any(name.endswith(_MASKED) for name in config.architectures or ()):
        model, missing = load(AutoModelForMaskedLM, {})
        if not missing:
            return model, missing
    return load(_AUTO_MODEL[family.architecture], family.load_arguments)


def _from_pretrained(
    where: str, config: Any, kind: Any, arguments: Mapping[str, Any], *, spread: DeviceMap, bits: Bits | None
) -> tuple[Any, set[str]]:
    placed: dict[str, Any] = {}
    if spread:
        folder = TemporaryDirectory(prefix="continual-")  # of the layers that no device's memory holds
        placed = {"device_map": spread, "offload_folder": folder.name}
    if bits:
        with torch.device("meta"):
            placed["quantization_config"] = quantization_config(bits, kind.from_config(config))
    model, info = kind.from_pretrained(
        where,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **placed,
        **arguments,
    )
    if spread:
        finalize(model, folder.cleanup)
    return model, set(info["missing_keys"])


def freeze(
    model: Any, tokenizer: Any, *, name: str, pooling: Pooling = "mean", device: str = "auto", dtype: str = "auto"
) -> Backbone:
    """Freeze a transformers model that is in memory already, with or without its language modelling head.

    A tokenizer that has no padding token is given its end token for one.

    Raises BackboneError for an unknown family, or a tokenizer without either token.
    """
    split, family = is_split(model), family_of(model.config)
    chosen = device_of(model.get_input_embeddings()) if split else resolve_device(device)
    compute = resolve_dtype(dtype, chosen, quantised=bool(quantization_digest(model)))
    masked = family.architecture == "encoder" and model.get_output_embeddings() is not None
    lm = model if masked or (family.architecture != "encoder" and model.can_generate()) else None
    if lm is not None and not masked:
        lm.generation_config.forced_eos_token_id = None  # what is written depends on nothing but what was read
    _let_pad(tokenizer, name)
    model.requires_grad_(False).eval()
    fix_compute_dtype(model, compute)
    if not split:
        model.to(chosen)
    return Backbone(
        name=name,
        fingerprint=fingerprint(model.base_model if lm is None or masked else lm),
        model=model.base_model,
        language_model=lm,
        tokenizer=tokenizer,
        family=family,
        pooling=pooling,
        device=chosen,
        dtype=compute,
        split=split,
    )


def _let_pad(tokenizer: Any, name: str) -> None:
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BackboneError(
                f"the tokenizer of backbone {name!r} has no padding token and no end token; "
                "name one in its tokenizer_config.json, as pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token
