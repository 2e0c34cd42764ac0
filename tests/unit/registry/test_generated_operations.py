"""The examples in the docstrings of `registry` and `tasks` run."""

import doctest
import importlib

import pytest

MODULES = (
    "registry.blobs",
    "registry.names",
    "registry.operations.api_keys",
    "registry.redaction",
    "registry.registry",
    "registry.writes.champion_rules",
    "registry.writes.stream_changes",
    "tasks.recipe",
    "tasks.rows",
    "tasks.spec",
    "tasks.targets",
    "tasks.template",
    "tasks.validation_messages",
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(module))
    assert failed == 0
    assert attempted > 0
