"""Names of the arguments of transformers' modules in every release: a missing one is an error."""

import doctest

import pytest
import torch

from continual.backbones import arguments
from continual.backbones.backbone import Backbone
from continual.deltas import attached
from continual.errors import BackboneError
from tests.helpers.tiny_tasks import fresh_delta


def test_a_generating_stack_takes_a_cache(backbone: Backbone) -> None:
    if backbone.architecture == "causal":
        stack = backbone.modules_at("tokens")[0].output_module
        assert arguments.require_cache_argument(stack) in arguments.CACHE_ARGUMENTS


@pytest.mark.parametrize("name", arguments.CACHE_ARGUMENTS)
def test_a_cache_is_found_under_either_name(name: str) -> None:
    cache = object()
    assert arguments.cache_of({"input_ids": torch.zeros(1, 1), name: cache}) is cache
    assert arguments.cache_of({"input_ids": torch.zeros(1, 1), name: None}) is None


def test_a_soft_prompt_is_refused_where_no_cache_could_be_found(
    writer: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    if writer.architecture != "causal":
        pytest.skip("an encoder's stack continues no text")
    monkeypatch.setattr(arguments, "CACHE_ARGUMENTS", ("renamed_again",))
    with (
        pytest.raises(
            BackboneError, match=r"takes no key-value cache under the name 'renamed_again'; it takes input_ids"
        ),
        attached(writer, fresh_delta(writer, "prompt")),
    ):
        pass


def test_examples_run() -> None:
    assert doctest.testmod(arguments) == (0, 2)
