"""Names under which transformers' modules take an argument; they differ between releases."""

import inspect
from typing import Any

from torch import nn

from continual.backbones.sites import Call
from continual.errors import BackboneError

# Of a key-value cache: since transformers 5.24, before, and of GPT-NeoX's layers.
CACHE_ARGUMENTS = ("cache", "past_key_values", "layer_past")


def cache_argument(module: nn.Module) -> str | None:
    """Return the name of the key-value cache among a module's arguments; None where it takes none.

    >>> from transformers.models.gpt2.modeling_gpt2 import GPT2Model
    >>> cache_argument(GPT2Model) in CACHE_ARGUMENTS
    True
    """
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


def require_cache_argument(module: nn.Module) -> str:
    """Return the name of the argument by which a module's `forward` takes a key-value cache.

    Raises:
        BackboneError: It takes none under a name in CACHE_ARGUMENTS, so that a cache in use would not be noticed.
    """
    name = cache_argument(module)
    if name is None:
        raise BackboneError(
            f"{type(module).__name__}.forward takes no key-value cache under the name "
            f"{' or '.join(map(repr, CACHE_ARGUMENTS))}; it takes "
            f"{', '.join(inspect.signature(module.forward).parameters)}. Use a release of transformers that "
            "this version was tested with (see pyproject.toml)"
        )
    return name


def cache_of(call: Call) -> Any:
    """Return the key-value cache among the arguments of a call, by any of its names, or None."""
    return next((call[name] for name in CACHE_ARGUMENTS if call.get(name) is not None), None)
