"""Largest difference of each method's hidden states from a second implementation, on a tiny model of each family.

    python -m tests.benchmarks.parity > parity.json

Differences are shares of the largest state at a text's tokens; null where PEFT has no such adapter for the family, or
the family lacks a site of the method.
"""

import json
import tempfile
import warnings
from pathlib import Path

import pytest

from tests.benchmarks.run_log import quieten, say
from tests.helpers.references import REFERENCES, Reference, largest_difference
from tests.helpers.tiny_models import TINY_CONFIGS
from tests.helpers.tiny_tasks import perturbed_delta, tiny_backbone


def difference(reference: Reference, family: str) -> float | None:
    backbone = tiny_backbone(family)
    try:
        delta = perturbed_delta(backbone, reference.method, **reference.settings)
    except pytest.skip.Exception:  # the family lacks a site of the method
        return None
    with tempfile.TemporaryDirectory() as folder:
        expected = reference.states(backbone, delta, Path(folder))
        return None if expected is None else largest_difference(backbone, delta, expected)


def main() -> None:
    quieten()
    warnings.filterwarnings("ignore", category=UserWarning)  # of PEFT: what it sets by itself
    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers: names that PEFT uses
    rows = []
    for reference in REFERENCES:
        differences = {family: difference(reference, family) for family in TINY_CONFIGS}
        row = {"method": reference.method, "settings": reference.settings, "against": reference.against}
        rows.append({**row, "differences": differences})
        largest = max(value for value in differences.values() if value is not None)
        say(f"{reference.method:20} {reference.against:10} {largest:.1e}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
