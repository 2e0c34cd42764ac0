"""The confidence of a router: its formula, what it leaves as it is, and what it learns from held-out rows."""

import numpy as np
import pytest
import torch

from continual.routing.calibration import IDENTITY, fit_calibration, recalibrate
from continual.routing.held_out import HeldOutRows

LOG_P = torch.log_softmax(3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 1)


def test_the_confidence_is_the_beta_function_of_the_probability() -> None:
    a, d, c = curve = (0.8, 1.4, 0.3)
    p = np.exp(LOG_P.numpy().max(axis=1))
    expected = 1 / (1 + np.exp(-(a * np.log(p) - d * np.log(1 - p) + c)))
    rest = (1 - expected) / (1 - p) * np.sort(np.exp(LOG_P.numpy()))[:, -2]  # what the second one has then
    is_first = expected > rest
    assert is_first.mean() > 0.9
    actual = recalibrate(LOG_P, curve=curve).exp().amax(dim=1).numpy()
    np.testing.assert_allclose(actual[is_first], expected[is_first], rtol=1e-9)


@pytest.mark.parametrize("curve", [IDENTITY, (0.3, 2.0, -2.0), (3.0, 0.1, 3.0)])
def test_probabilities_sum_to_one_and_keep_their_order(curve: tuple[float, float, float]) -> None:
    scaled = recalibrate(LOG_P, curve=curve)
    torch.testing.assert_close(scaled.exp().sum(dim=1), torch.ones(len(LOG_P), dtype=torch.float64))
    best = scaled.gather(1, LOG_P.argmax(dim=1, keepdim=True)).squeeze(1)
    assert bool((best >= scaled.amax(dim=1) - 1e-12).all())
    if curve == IDENTITY:
        torch.testing.assert_close(scaled, LOG_P)


def test_rows_that_say_nothing_lower_the_confidence() -> None:
    """Every fourth row has a random task, so that three quarters and a share of a quarter are right."""
    draw = torch.Generator().manual_seed(0)
    tasks = torch.arange(4000) % 4
    scores = 8 * torch.nn.functional.one_hot(tasks, 4).float() + torch.randn(4000, 4, generator=draw)
    labels = torch.where(torch.rand(4000, generator=draw) < 0.25, torch.randint(0, 4, (4000,), generator=draw), tasks)
    rows = HeldOutRows(torch.zeros(4000, 1), labels, torch.zeros(4000))
    fitted = fit_calibration([scores], rows)
    log_p = torch.log_softmax(fitted.weights[0] * scores + fitted.offsets, dim=1)
    sure = recalibrate(log_p, curve=fitted.curve).amax(dim=1).exp()
    right = (log_p.argmax(dim=1) == labels).double()
    assert abs(float(sure.double().mean() - right.mean())) < 0.01
