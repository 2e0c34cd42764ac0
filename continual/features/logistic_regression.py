"""Regularised logistic regression on pooled vectors, and its pool with the closed-form discriminant.

    min_{W, b}  Σ_n −log softmax(W z_n + b)[y_n] + ‖W‖² / (2 s)     z = (x − mean) / deviation

The discriminant assumes Gaussian classes of one covariance, and chooses its shrinkage on held-out rows. Logistic
regression assumes neither, and needs more rows. Their errors differ, so that the average of both is better than
either, and than the one that few held-out rows would choose. Ng and Jordan (2001), "On Discriminative vs. Generative
Classifiers".

Shapes: N rows, C classes, D dimensions.
"""

import warnings

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from continual.features.discriminant import DiscriminantHead, LinearHead, fit_discriminant, fit_temperature
from continual.features.signature import compute_signature

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the weights, s: the variance of their Gaussian prior
MAX_ITERATIONS = 100


def fit_linear_head(
    vectors: Tensor, classes: Tensor, held_out: Tensor, held_out_classes: Tensor, *, count: int
) -> DiscriminantHead:
    """Fit the average of the closed-form discriminant and of the best logistic regression on held-out rows.

    Args:
        vectors: Train vectors [N, D].
        classes: Their classes [N]; every class has at least one row.
        held_out: Held-out vectors [N, D].
        held_out_classes: Their classes [N].
        count: The number of classes C, at least two.
    """
    signature = compute_signature(vectors, classes, count=count)
    discriminant = fit_discriminant(signature, held_out, held_out_classes)
    fits = [
        fit_temperature(weight, bias, held_out.double(), held_out_classes)
        for weight, bias in fit_logistic_regressions(vectors, classes)
    ]
    logistic = min(fits, key=lambda fit: fit.loss)  # accuracy ties, or flatters itself, on few rows
    weight, bias = average_heads((discriminant.weight, discriminant.bias), (logistic.weight, logistic.bias), held_out)
    return fit_temperature(weight, bias, held_out.double(), held_out_classes)


def fit_logistic_regressions(vectors: Tensor, classes: Tensor) -> list[LinearHead]:
    """Fit one logistic regression for each of `STRENGTHS`, each from the solution before it.

    Args:
        vectors: Vectors [N, D].
        classes: Their classes [N], from 0 to C − 1; every class has at least one row.

    Returns:
        Weights [C, D] and biases [C], float64.
    """
    from sklearn.exceptions import ConvergenceWarning  # imports pandas, which answering does without
    from sklearn.linear_model import LogisticRegression

    mean = vectors.double().mean(dim=0)
    centred = vectors.double() - mean
    deviation = float(centred.square().mean().sqrt()) or 1.0
    inputs, targets = (centred / deviation).numpy(), classes.numpy()
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    solutions = []
    # In L-BFGS threads of BLAS wait for each other longer than they compute, six times as long with 5,000 rows.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # iterations are bounded on purpose
        for strength in STRENGTHS:
            model.set_params(C=strength).fit(inputs, targets)
            solutions.append((torch.from_numpy(model.coef_) / deviation, torch.from_numpy(model.intercept_)))
    heads = []
    for weight, bias in solutions:
        if len(weight) == 1:  # of two classes, scikit-learn fits the difference of the logits
            weight, bias = torch.cat((-weight / 2, weight / 2)), torch.cat((-bias / 2, bias / 2))
        heads.append((weight, bias - weight @ mean))
    return heads


def average_heads(first: LinearHead, second: LinearHead, vectors: Tensor) -> LinearHead:
    """Average two heads, each divided by the root mean square of its centred logits, so that both count the same.

    Args:
        first: Weight [C, D] and bias [C].
        second: Weight [C, D] and bias [C].
        vectors: The vectors [N, D] whose logits are measured.

    Returns:
        Weight [C, D] and bias [C], float64.
    """
    parts = []
    for weight, bias in ((weight.double(), bias.double()) for weight, bias in (first, second)):
        logits = F.linear(vectors.double(), weight, bias)
        scale = float((logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt()) or 1.0
        parts.append((weight / scale, bias / scale))
    (first_weight, first_bias), (second_weight, second_bias) = parts
    return (first_weight + second_weight) / 2, (first_bias + second_bias) / 2
