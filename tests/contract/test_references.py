"""Methods on every family against PEFT or their papers' equations."""

from pathlib import Path

import pytest

from continual.backbones.backbone import Backbone
from tests.helpers.references import REFERENCES, Reference, largest_difference
from tests.helpers.tiny_tasks import perturbed_delta

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT: what it sets by itself


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: f"{reference.method}-{reference.against}")
def test_a_method_equals_its_reference(backbone: Backbone, reference: Reference, tmp_path: Path) -> None:
    if reference.against == "PEFT":
        pytest.importorskip("peft")
    delta = perturbed_delta(backbone, reference.method, **reference.settings)
    expected = reference.states(backbone, delta, tmp_path)
    if expected is None:
        pytest.skip("PEFT has no such adapter for this family")
    assert largest_difference(backbone, delta, expected) < 1e-5
