"""Express a merged encoder with its head as one of transformers' sequence classifiers.

Those read the first token's state, through a layer and an activation f. Two constructions put a linear head
z = W mean_t(h_t) + b behind it, with nothing but weights (docs/decisions/0112):

- *An averaging layer.* One more layer, whose queries and keys are zero, attends to all tokens of a text alike: at every
  token its attention returns the mean of the values ±W h_t. Its output projection multiplies by K and adds constants
  ±K B in the other dimensions, so that the residual (below |z| / 2²⁴ of K z) and the norm's division by a standard
  deviation (constant up to |z|² / B²) change nothing but the last bits. The last norm scales back to ±z.
- *The odd part of the activation.* f(δ z) − f(−δ z) is 2 δ z for tanh and small δ, and δ z for GELU and ReLU.

Shapes: C outputs, D hidden size.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from continual.backbones.families.family import Family
from continual.backbones.hub import silence_transformers
from continual.deltas import Head
from continual.errors import ExchangeError
from continual.features.pooling import pool

TOLERANCE = 1e-4  # of the largest output
CONSTANT = 2.0**12  # B over the largest |z|
GAIN = 2.0**24  # K |z| over the largest residual
LINEAR_RANGE = 2.0**-11  # of tanh: x³/3 is below a rounding of float32


@dataclass(frozen=True)
class _ClassifierModules:
    """What stands between the first token's state and the outputs of a classification model.

    Attributes:
        dense: The layer before the activation [D, D].
        out: The layer behind it [C, D].
        slope: Slope of f(x) − f(−x) at 0, for the activation f.
    """

    dense: str
    out: str
    slope: float


_ROBERTA = _ClassifierModules("classifier.dense", "classifier.out_proj", 2.0)  # tanh
_MODULES: Mapping[str, _ClassifierModules] = {
    "bert": _ClassifierModules("bert.pooler.dense", "classifier", 2.0),  # tanh
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "electra": _ClassifierModules("classifier.dense", "classifier.out_proj", 1.0),  # GELU
    "distilbert": _ClassifierModules("pre_classifier", "classifier", 1.0),  # ReLU
}


def classifier_obstacle(family: Family, head: Head | None) -> str | None:
    """Return why no sequence classifier of transformers computes a head's outputs; None where one does."""
    if head is None:
        return "the task is answered by the language model itself"
    if family.name not in _MODULES:
        return f"the classifier of a {family.name} model cannot hold a linear head on pooled states"
    if head.layers is not None:
        return f"its head reads the states behind {head.layers} layers, and the model has more"
    if head.pooling == "last":
        return f"the classifier of a {family.name} model reads the first token, and the head the last"
    if (needed := 2 * len(head.labels) + 2) > family.hidden_size:
        return f"{len(head.labels)} labels need states of {needed} dimensions, and these have {family.hidden_size}"
    return None


@torch.no_grad()
def build_classifier(model: Any, family: Family, head: Head, *, problem_type: str) -> tuple[Any, Head]:
    """Return a sequence classifier in float32, and the head as it acts on the classifier's last states.

    Where the head reads the mean, the classifier has one more layer than the model.

    Args:
        model: The plain encoder, without heads.
        family: Its family.
        head: A head for which `classifier_obstacle` is None.
        problem_type: `single_label_classification` or `regression`.

    Raises:
        ExchangeError: The classifier's outputs differ from the head's, as with values beyond float32's range.
    """
    classifier, is_mean = _new_classifier(model, family, head, problem_type), head.pooling == "mean"
    float_head = head.map(lambda tensor: tensor.detach().cpu().float())
    limit = _OutputLimit.of(classifier, family, float_head)
    new_head = float_head
    if is_mean:
        new_head = _set_averaging_layer(classifier.base_model, family, float_head, limit)
    _set_head(classifier, _MODULES[family.name], new_head, limit.outputs)
    _require_equal_outputs(classifier, model, float_head)
    return classifier, new_head


def _new_classifier(model: Any, family: Family, head: Head, problem_type: str) -> Any:
    """Return a classification model with the encoder's weights, other weights as they are initialised."""
    config = deepcopy(model.config)
    config.num_hidden_layers = family.stack.num_layers + (head.pooling == "mean")
    config.id2label = dict(enumerate(head.labels))
    config.label2id = {label: i for i, label in enumerate(head.labels)}
    config.problem_type, config.dtype = problem_type, torch.float32
    with silence_transformers():
        classifier = AutoModelForSequenceClassification.from_config(config).float().eval()
    classifier.base_model.load_state_dict(model.state_dict(), strict=False)
    return classifier


@dataclass(frozen=True)
class _OutputLimit:
    """Largest absolute values that follow from the last norm, γ ⊙ x + β with |x| = √D.

    Attributes:
        states: Of a state's dimensions.
        outputs: Of a head's outputs.
    """

    states: float
    outputs: float

    @classmethod
    def of(cls, classifier: Any, family: Family, head: Head) -> "_OutputLimit":
        norm = _module_of_layer(classifier.base_model, family, "norm.ffn", family.stack.num_layers - 1)
        root = math.sqrt(family.hidden_size)
        states = root * norm.weight.abs() + norm.bias.abs()
        outputs = root * (head.weight * norm.weight).norm(dim=1) + head(norm.bias).abs()
        return cls(float(states.max()), max(float(outputs.max()), 1e-6))


def _module_of_layer(model: Any, family: Family, site: str, layer: int) -> Any:
    return model.get_submodule(family.stack.sites[site].output_path.format(layer))


def _set_averaging_layer(model: Any, family: Family, head: Head, limit: _OutputLimit) -> Head:
    """Make the last layer return (z, −z, 0) at every token; return the head ½ (z − (−z)) of its states."""
    size, doubled = family.hidden_size, 2 * len(head.labels)
    pairs = (size - doubled) // 2
    constant = _power_of_two(CONSTANT * limit.outputs)
    gain = _power_of_two(GAIN * limit.states / limit.outputs)

    def module(site: str) -> Any:
        return _module_of_layer(model, family, site, family.stack.num_layers)

    for site in ("attn.q", "attn.k", "ffn.in", "ffn.out"):
        _set(module(site))
    _set(module("attn.v"), torch.cat([head.weight, -head.weight]))
    constants = torch.tensor([constant, -constant]).repeat_interleave(pairs)
    _set(module("attn.out"), gain * torch.eye(size), gain * torch.cat([head.bias, -head.bias, constants]))
    _set(module("norm.attn"), torch.ones(size))
    deviation = constant * math.sqrt(2 * pairs / size)
    _set(module("norm.ffn"), torch.full((doubled,), deviation))
    half = 0.5 * torch.eye(len(head.labels), size)
    return Head(half - half.roll(len(head.labels), dims=1), torch.zeros(len(head.labels)), head.labels, head.pooling)


def _set_head(classifier: Any, modules: _ClassifierModules, head: Head, largest: float) -> None:
    """Make the classifier return the head's outputs of the first token's state."""
    count, scale = len(head.labels), _power_of_two(LINEAR_RANGE / largest)
    signed = head.map(lambda tensor: scale * torch.cat([tensor, -tensor]))
    _set(classifier.get_submodule(modules.dense), signed.weight, signed.bias)
    difference = torch.eye(count).repeat(1, 2)
    difference[:, count:] *= -1
    _set(classifier.get_submodule(modules.out), difference / (modules.slope * scale))


def _set(module: Any, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
    """Set the first entries of a module's weight and bias, and the others to zero."""
    for parameter, values in ((module.weight, weight), (module.bias, bias)):
        parameter.zero_()
        if values is not None:
            parameter[tuple(map(slice, values.shape))] = values


def _power_of_two(value: float) -> float:
    """Round to a power of two, by which products are exact."""
    return 2.0 ** round(math.log2(value))


def _require_equal_outputs(classifier: Any, model: Any, head: Head) -> None:
    """Raise ExchangeError if the outputs of two texts, one of them padded, are not the head's."""
    ids = torch.arange(8).repeat(2, 1) + 4
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    states = model.cpu().float()(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = head(pool(states, mask, head.pooling))
    difference = (classifier(input_ids=ids, attention_mask=mask).logits - expected).abs().max()
    if not difference <= TOLERANCE * expected.abs().max().clamp(min=1):
        raise ExchangeError(
            f"the classifier that would be written answers otherwise than the head, by {float(difference):.2g}; "
            "export the delta with --format peft"
        )
