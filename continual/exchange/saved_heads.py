"""The classifier that an adapter saved beside its tensors, as the head of a task.

Shapes: C labels, D hidden size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, zeros

from continual.backbones.backbone import Backbone
from continual.deltas import Head
from continual.errors import ExchangeError
from continual.exchange.files import read_json
from continual.exchange.unreached import module_of

MODEL_CONFIG = "config.json"
# Modules between the states and the classifier of transformers' classification models, by `model_type`.
BEHIND_STATES = {
    "bert": "it reads the pooler's output tanh(W h + b), not the state h of the first token",
    "roberta": "it is two layers with a tanh between them",
    "xlm-roberta": "it is two layers with a tanh between them",
    "electra": "it is two layers with a GELU between them",
    "distilbert": "it is two layers with a ReLU between them",
    "modernbert": "it reads the output of a prediction head (a layer, an activation and a norm)",
    "t5": "it is two layers with a tanh between them, on a state of the decoder",
    "bart": "it is two layers with a tanh between them, on a state of the decoder",
}


def saved_head(
    backbone: Backbone, tensors: Mapping[str, Tensor], labels: Sequence[str], *, folder: Path
) -> tuple[Head | None, str]:
    """Return the saved classifier as a head, or else the reason why it cannot be one.

    A head is linear in the pooled states, so the classifier must be. Of transformers' classification models those of
    causal language models are: `score`, C outputs without a bias, on the state of the last token.

    Args:
        backbone: The backbone.
        tensors: Tensors behind the plain model, by name, such as `score.weight` [C, D].
        labels: The task's labels in any order.
        folder: The adapter's folder, for the order of the labels in the `id2label` of a `config.json`.

    Returns:
        The head with pooling `last`, and no reason; or None, and a reason, empty where there are no tensors.
    """
    if not tensors:
        return None, ""
    modules, outputs = sorted({module_of(name) for name in tensors}), f"{len(labels)} labels"
    if obstacle := _not_linear(backbone, modules, tensors):
        return None, f"the saved classifier ({', '.join(modules)}) is not linear in the pooled states: {obstacle}"
    weight = tensors["score.weight"]
    if tuple(weight.shape) != (len(labels), backbone.hidden_size):
        return None, (
            f"the saved classifier score.weight is {list(weight.shape)}, and a head for {outputs} on this backbone is "
            f"{[len(labels), backbone.hidden_size]}"
        )
    ordered = _label_order(folder, labels)
    if ordered is None:
        return None, (
            f"the saved classifier does not name its outputs; allowed are {sorted(labels)} as id2label in a "
            f"{MODEL_CONFIG} in the folder (transformers: model.config.save_pretrained), each once"
        )
    bias = tensors.get("score.bias", zeros(len(labels)))
    return Head(weight.float(), bias.float(), ordered, "last"), ""


def _not_linear(backbone: Backbone, modules: Sequence[str], tensors: Mapping[str, Tensor]) -> str:
    """Return why a classifier is not one linear layer on a pooled state; empty where it is."""
    if backbone.architecture != "causal":
        family = backbone.family.name
        return BEHIND_STATES.get(family, f"what is between it and the states of a {family} model is not known")
    if modules != ["score"]:
        return "only a module `score` is, on the state of the last token"
    if not tensors.keys() <= {"score.weight", "score.bias"} or "score.weight" not in tensors:
        return f"of one, weight and perhaps bias are saved, not {sorted(tensors)}"
    return ""


def _label_order(folder: Path, labels: Sequence[str]) -> tuple[str, ...] | None:
    """Return the labels by index, from `id2label` or from labels that are indices; None where neither tells."""
    names = _id2label(folder / MODEL_CONFIG)
    for ordered in (names, tuple(str(index) for index in range(len(labels)))):
        if sorted(ordered) == sorted(labels):
            return ordered
    return None


def _id2label(file: Path) -> tuple[str, ...]:
    """Return the labels in a model's configuration by index; none where it has none, or not one per index."""
    try:
        names = read_json(file)["id2label"]
        return tuple(str(names[str(index)]) for index in range(len(names)))
    except (ExchangeError, KeyError, TypeError):
        return ()
