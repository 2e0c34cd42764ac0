"""Cross-validated losses: they equal a written-out fit, and order representations by what they say of the targets."""

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from continual.features.cross_validation import FOLDS, RIDGE_PENALTIES, discriminant_loss, ridge_loss


def draw(rows: int, size: int, *, separation: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(rows) % 3
    centres = separation * torch.randn(3, size, generator=generator)
    return centres[classes] + torch.randn(rows, size, generator=generator), classes


@pytest.mark.parametrize(("rows", "size"), [(60, 8), (18, 40)])
def test_a_separated_representation_has_the_lower_loss(rows: int, size: int) -> None:
    losses = [discriminant_loss(*draw(rows, size, separation=separation)) for separation in (0.0, 0.5, 2.0)]
    assert all(loss is not None for loss in losses)
    assert losses == sorted(losses, reverse=True)  # type: ignore[type-var]
    assert losses[0] == pytest.approx(torch.tensor(3.0).log().item(), abs=0.3)


def test_a_rotation_changes_nothing() -> None:
    vectors, classes = draw(30, 50, separation=0.5)
    rotation = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    rotated = discriminant_loss(vectors.double() @ rotation, classes)
    assert rotated == pytest.approx(discriminant_loss(vectors, classes), rel=1e-6)


def test_a_class_of_one_row_is_not_judged() -> None:
    vectors, classes = draw(30, 5, separation=1.0)
    with_single = discriminant_loss(torch.cat((vectors, vectors[:1] + 9)), torch.cat((classes, torch.tensor([7]))))
    assert with_single is not None
    assert discriminant_loss(vectors[:3], classes[:3]) is None
    assert discriminant_loss(vectors[:0], classes[:0]) is None


def test_the_ridge_loss_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    targets = vectors @ torch.randn(6, generator=generator, dtype=torch.float64) + torch.randn(50, generator=generator)
    means = []
    for penalty in RIDGE_PENALTIES:
        errors = torch.zeros(50, dtype=torch.float64)
        for fold in range(FOLDS):
            held_out = torch.arange(50) % FOLDS == fold
            inputs = vectors[~held_out].numpy()
            centred = vectors[~held_out] - vectors[~held_out].mean(dim=0)
            scale = float((centred.T @ centred).diagonal().mean())
            model = Ridge(alpha=penalty * scale).fit(inputs, targets[~held_out].numpy())
            errors[held_out] = torch.from_numpy(model.predict(vectors[held_out].numpy())) - targets[held_out]
        means.append(float(errors.square().mean()))
    assert ridge_loss(vectors, targets) == pytest.approx(min(means), rel=1e-6)
    assert ridge_loss(vectors[:1], targets[:1]) is None
