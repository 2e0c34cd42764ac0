"""Numbers of parameters by the papers' formulae, and no code that branches on a method's name."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta, finalize
from tests.helpers.paths import ROOT
from tests.helpers.tiny_tasks import REQUIRED_SETTINGS, fresh_delta, tiny_backbone

L, D, F = 2, 32, 48  # layers, width, width of the feed-forward
ENCODER = L + 1  # layers of the tiny T5's encoder; its decoder has L
SHAPES = [(D, D)] * 4 + [(F, D), (D, F)]  # the projections of a layer
WEIGHTS = L * sum(e * d for e, d in SHAPES)
INPUTS, OUTPUTS = L * sum(d for _, d in SHAPES), L * sum(e for e, _ in SHAPES)
NORMS = 2 * L + 1
LAYER = WEIGHTS // L + OUTPUTS // L + 4 * D

FORMULAE: list[tuple[str, dict[str, Any], int]] = [
    ("lora", {"rank": 3}, 3 * (INPUTS + OUTPUTS)),
    ("lora", {"rank": 3, "sites": ("attn.q", "attn.v")}, L * 2 * 3 * (D + D)),
    ("dora", {"rank": 3}, 3 * (INPUTS + OUTPUTS) + OUTPUTS),
    ("adapter", {"size": 7}, L * 2 * (2 * 7 * D + D + 7) + NORMS * 2 * D),
    ("adapter_pfeiffer", {"size": 7}, L * (2 * 7 * D + D + 7)),
    ("parallel_adapter", {"size": 7, "blocks": ("attn", "ffn")}, 2 * L * (2 * 7 * D + D + 7)),
    ("multi_head_adapter", {"size": 7}, L * 2 * 7 * D),
    ("prefix", {"length": 5}, L * 2 * 5 * D),
    ("prefix", {"length": 5, "reparameterise": 9}, L * 2 * 5 * D),
    ("prompt", {"length": 5}, 5 * D),
    ("ia3", {}, L * (D + D + F)),
    ("layer_norm", {}, NORMS * 2 * D),
    ("bitfit", {}, OUTPUTS + NORMS * D),
    ("last_layer", {}, LAYER),
    ("last_layer", {"count": 2}, 2 * LAYER),
    ("selective", {"sites": ("attn.q",), "share": 0.5}, D * D + D),
    ("diff_pruning", {"share": 0.1}, 2 * L * sum(round(0.1 * e * d) for e, d in SHAPES)),
    ("masking", {}, WEIGHTS // 8),  # in bytes
    ("ada_lora", {"rank": 3}, 3 * (INPUTS + OUTPUTS + L * 6)),
    ("vera", {"rank": 3}, L * 6 * 3 + OUTPUTS),
    ("lora_xs", {"rank": 3}, L * 6 * 3**2),
    ("tiny_lora", {"dimension": 13}, 13),
    ("loha", {"rank": 3}, 2 * 3 * (INPUTS + OUTPUTS)),
    ("lokr", {"rank": 2}, L * 4 * (4 * 4 + 2 * (8 + 8)) + L * 2 * (4 * 6 + 2 * (8 + 8))),  # 32 = 4 · 8, 48 = 6 · 8
    ("lokr", {"rank": 9}, L * 4 * (4 * 4 + 8 * 8) + L * 2 * (4 * 6 + 8 * 8)),  # a second factor of full rank
    ("oft", {"block_size": 8}, INPUTS * (8 - 1) // 2),
    ("boft", {"block_size": 4, "factors": 3}, 3 * INPUTS * (4 - 1) // 2 + OUTPUTS),
    ("fourier_ft", {"frequencies": 10}, L * 6 * 10),
    ("reft", {"rank": 3}, L * (2 * 3 * D + 3)),
    ("reft", {"rank": 3, "layers": (-1,)}, 2 * 3 * D + 3),
    ("intrinsic", {"dimension": 10}, 10 + L * 6),
    ("intrinsic", {"dimension": 10, "scaled": False}, 10),
    ("mam", {"length": 5, "size": 7}, L * 2 * 5 * D + L * (2 * 7 * D + D + 7)),
    ("adapter_bitfit", {"size": 7}, L * 2 * (2 * 7 * D + D + 7) + NORMS * 2 * D + OUTPUTS + NORMS * D),
    ("union", {}, OUTPUTS + NORMS * D + 2 * (INPUTS + OUTPUTS)),
    ("sequential", {}, OUTPUTS + NORMS * D + 2 * (INPUTS + OUTPUTS)),
    ("subspace", {"of": {"name": "lora", "rank": 3}}, 3 * (INPUTS + OUTPUTS)),
    ("probe", {}, 0),
]


def body_size(delta: Delta) -> int:
    return sum(value.numel() for value in delta.values.values())


@pytest.mark.parametrize(("method", "settings", "expected"), FORMULAE, ids=lambda value: str(value)[:30])
def test_the_parameter_count_is_the_papers(
    bertlike: Backbone, method: str, settings: dict[str, Any], expected: int
) -> None:
    delta = fresh_delta(bertlike, method, **settings)
    assert body_size(finalize(bertlike, delta, stage=delta.settings.stages - 1)) == expected


def test_full_has_as_many_values_as_the_backbone(bertlike: Backbone) -> None:
    assert body_size(fresh_delta(bertlike, "full")) == bertlike.parameter_count


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("ia3", {}, ENCODER * (2 * D + F) + L * (4 * D + F)),  # Liu et al. (2022): L (d_k + d_v + d_ff), decoders twice
        ("ia3", {"cross_attention": False}, (ENCODER + L) * (2 * D + F)),
        ("prefix", {"length": 5}, (ENCODER + 2 * L) * 2 * 5 * D),
        ("lora", {"rank": 3, "sites": ("attn.q", "attn.v")}, (ENCODER + 2 * L) * 2 * 3 * (D + D)),
        ("lora", {"rank": 3, "sites": ("self.q", "cross.v")}, (ENCODER + 2 * L) * 3 * (D + D)),
        ("multi_head_adapter", {"size": 7}, (ENCODER + 2 * L) * 2 * 7 * D),
    ],
)
def test_cross_attention_takes_part(method: str, settings: dict[str, Any], expected: int) -> None:
    writer = replace(tiny_backbone("t5"), generates=True)
    assert body_size(fresh_delta(writer, method, **settings)) == expected


def test_every_method_is_counted() -> None:
    assert {method for method, _, _ in FORMULAE} | {"full"} == METHODS.keys()
    assert REQUIRED_SETTINGS.keys() <= METHODS.keys()


def test_the_head_is_counted_too(bert: Backbone) -> None:
    delta = fresh_delta(bert, "lora", rank=3)
    assert delta.parameter_count == body_size(delta) + 2 * D + 2


def names_compared(tree: ast.AST) -> Iterator[str]:
    """Yield the methods' names that a file compares with, matches, or looks up."""
    for node in ast.walk(tree):
        places: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            places = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            places = [node.value]
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "METHODS":
            places = [node.slice]
        for constant in (inner for place in places for inner in ast.walk(place)):
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str) and constant.value in METHODS:
                yield constant.value


def test_no_code_branches_on_a_methods_name() -> None:
    files = sorted((ROOT / "continual").rglob("*.py"))
    assert [
        (file, name) for file in files for name in names_compared(ast.parse(file.read_text(encoding="utf-8")))
    ] == []


@pytest.mark.parametrize("code", ["x == 'lora'", "x in ('a', 'full')", "METHODS['dora']", "match x:\n  case 'ia3': 1"])
def test_a_branch_on_a_methods_name_would_be_found(code: str) -> None:
    assert len(list(names_compared(ast.parse(code)))) == 1


def lines_of_code(file: Path) -> int:
    """Return the lines of a file without its docstrings."""
    text = file.read_text(encoding="utf-8")
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [
        node.body[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
    ]
    return len(text.splitlines()) - sum((node.end_lineno or 0) - node.lineno + 1 for node in docstrings)


def test_a_method_is_a_short_file() -> None:
    files = {Path(inspect.getfile(method)) for method in METHODS.values()}
    assert {file.name: lines for file in files if (lines := lines_of_code(file)) > 120} == {}
