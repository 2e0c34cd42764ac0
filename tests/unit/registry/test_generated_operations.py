"""The examples in the registry's docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["admission", "blobs", "keys", "names", "registry", "streams"])
def test_examples_run(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"registry.{name}"))
    assert failed == 0
    assert tried > 0
