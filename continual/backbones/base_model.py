"""The stacks of layers of a transformers model, without its heads."""

from typing import Any

from transformers import PreTrainedModel


def base_model(model: Any) -> Any:
    """Return a model without heads: its stack of layers, or itself where it has none.

    Some classes, such as Llama 4's, name another attribute than they have as their base.

    Args:
        model: A transformers model, with or without heads.
    """
    base, stack = model.base_model, getattr(model, "model", None)
    return stack if base is model and isinstance(stack, PreTrainedModel) else base
