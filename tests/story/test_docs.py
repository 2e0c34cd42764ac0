"""The documentation of methods: its table agrees with the code, and its example runs."""

import re

import pytest

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, MethodSettings, finalize, method_settings
from continual.deltas.injection.layout import DeltaLayout, canonical_layout, layout_of
from continual.deltas.protocols import BatchedForm, implements
from continual.errors import MethodError
from continual.exchange import to_peft
from continual.exchange.merging import merge_obstacle
from continual.exchange.peft import peft_methods
from tasks import Method
from tests.helpers.fresh_processes import run_python
from tests.helpers.paths import DOCS
from tests.helpers.tiny_tasks import PEFT_SETTINGS, REQUIRED_SETTINGS, perturbed_delta

HEADINGS = ("name", "paper", "equation", "edits", "parameters", "starts", "mergeable", "peft", "mixed")
COMPOSED = ("union", "sequential")


def table() -> dict[str, dict[str, str]]:
    page, _ = (DOCS / "reference" / "methods.md").read_text(encoding="utf-8").split("## The papers' settings")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    rows = [dict(zip(HEADINGS, (cell.strip() for cell in line.split("|")[1:-1]), strict=True)) for line in lines]
    return {row["name"].strip("`"): row for row in rows}


def settings_of(method: str) -> MethodSettings:
    return METHODS[method].model_validate(REQUIRED_SETTINGS.get(method, {}))


def mixed(layout: DeltaLayout) -> str:
    """Return the table's description of how rows of several deltas of a method share a batch."""
    descriptions = {
        not names or implements(type(edit.form), BatchedForm)
        for (_, edit), names in zip(layout.steps, layout.names, strict=True)
    }
    return "at once" if descriptions <= {True} else "in part" if True in descriptions else "by delta"


def test_the_table_has_every_method_once_in_order() -> None:
    assert list(table()) == list(METHODS)
    assert all(cell for row in table().values() for cell in row.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_table_describes_each_method(method: str, bert: Backbone) -> None:
    row, settings = table()[method], settings_of(method)
    if method in COMPOSED:
        assert row["edits"] == "those of its parts"
        assert {row["starts"], row["mergeable"], row["mixed"]} == {"as its parts"}
    else:
        edits = [
            f"`{edit.site}` × {type(edit.form).__name__} × {edit.reads.value} × {type(edit.compose).__name__.lower()}"
            for edit in settings.edits()
        ]
        assert row["edits"] == ("<br>".join(edits) or "none")
        assert row["starts"] == settings.identity
        assert row["mergeable"] == ("no" if merge_obstacle(settings) else "yes")
        learned = finalize(bert, perturbed_delta(bert, method), stage=settings.stages - 1)
        assert row["mixed"] == mixed(canonical_layout(layout_of(bert, learned)))
    if method in peft_methods():
        needed = PEFT_SETTINGS.get(method, {})
        config = to_peft(bert, perturbed_delta(bert, method, **needed)).config
        switches = {**needed, **config}
        flags = "".join(f", `{key}`" for key in switches if switches[key] and key.startswith(("use_", "shift_")))
        assert row["peft"] == f"`{config['peft_type']}`{flags}"
    else:
        assert row["peft"] == "–"


def test_the_unified_views_example_prints_the_documented_output(minilm: Backbone) -> None:
    page = (DOCS / "explanation" / "unified-view.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    (documented,) = re.findall(r"^```text\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert run_python("-c", example) == documented


def test_every_preset_is_documented_and_valid() -> None:
    page = (DOCS / "reference" / "methods.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    presets = {(name, preset) for name, kind in METHODS.items() for preset, chosen in kind.PRESETS.items() if chosen}
    assert documented == presets
    for name, kind in METHODS.items():
        for preset, chosen in kind.PRESETS.items():
            required = REQUIRED_SETTINGS.get(name, {})
            settings = kind.model_validate({**required, "preset": preset})
            assert settings == kind.model_validate({**required, **chosen})


def test_a_setting_beside_a_preset_wins_and_an_unknown_preset_is_refused() -> None:
    chosen = method_settings(Method.model_validate({"name": "prefix", "preset": "paper", "length": 20}))
    assert chosen == METHODS["prefix"].model_validate({"length": 20, "reparameterise": 512})
    with pytest.raises(MethodError, match="preset 'papr' does not exist; there are: paper, delta_tuning"):
        method_settings(Method.model_validate({"name": "prefix", "preset": "papr"}))
