"""The arguments of calls of transformers' modules, by the names that their `forward` gives them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from continual.errors import BackboneError

Call = Mapping[str, Any]  # the arguments of a module's call by their names
# Names of a key-value cache: since transformers 5.24, before, and of GPT-NeoX's layers.
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


def bind_arguments(module: nn.Module, args: Sequence[Any], kwargs: Call) -> dict[str, Any]:
    """Return all arguments of a call by their names in the module's `forward`."""
    return {**dict(zip(_parameters(type(module).forward), args, strict=False)), **kwargs}


def replace_argument(
    module: nn.Module, args: Sequence[Any], kwargs: Call, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace one argument of a call of `module`; a positional one stays positional.

    Args:
        module: The module that is called.
        args: Positional arguments.
        kwargs: Keyword arguments.
        name: Name of the argument in the module's `forward`; empty for the first.
        value: Its new value.

    Returns:
        The new positional and keyword arguments.
    """
    index = _parameters(type(module).forward).index(name) if name else 0
    if index < len(args):
        return (*args[:index], value, *args[index + 1 :]), dict(kwargs)
    return tuple(args), {**kwargs, name: value}


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]  # without self
