"""Answers of a JSON schema, beside others in one batch."""

import json
from dataclasses import replace

import pytest

from continual.backbones.backbone import Backbone
from continual.generation.sampling import SamplingSettings
from continual.kinds.writing import make_prompts
from tasks.errors import InputError
from tests.conftest import backbone_of
from tests.helpers.writing import engine_of, prompt_ids, reference, write_prompts

pytest.importorskip("llguidance", reason="llguidance (extra `json`) is not installed")
LONGEST = 30


@pytest.fixture(params=["gpt2", "llama", "t5"])
def writer(request: pytest.FixtureRequest) -> Backbone:
    return replace(backbone_of(request.param), generates=True)


def schema(*, count: int) -> str:
    items = {"type": "array", "items": {"enum": [1, 2]}, "minItems": count, "maxItems": count}
    return json.dumps(items)


def test_rows_keep_to_their_own_schema(writer: Backbone) -> None:
    ids = prompt_ids(writer, ["purr meow"])
    settings = [
        SamplingSettings(LONGEST, json_schema=schema(count=1)),
        SamplingSettings(LONGEST),
        SamplingSettings(LONGEST, json_schema=schema(count=3), temperature=2.0, seed=1),
        SamplingSettings(LONGEST, json_schema=schema(count=2), temperature=2.0, seed=2),
        SamplingSettings(LONGEST, json_schema=schema(count=4)),
        SamplingSettings(3, json_schema=schema(count=4)),
    ]
    prompts = [make_prompts(writer, None, ids, each)[0] for each in settings]
    answers = write_prompts(engine_of(writer, None), prompts)
    for answer, count in zip(answers, (1, None, 3, 2, 4), strict=False):
        if count is not None:
            document = json.loads(writer.tokenizer.decode(answer.ids, skip_special_tokens=True))
            assert len(document) == count
            assert {*document} <= {1, 2}
            assert answer.finish_reason == "stop"
    assert answers[1].ids == reference(writer, None, ids[0], max_new_tokens=LONGEST)
    assert answers[5].finish_reason == "length"


def test_a_wrong_schema_is_refused(writer: Backbone) -> None:
    (prompt,) = make_prompts(writer, None, [(5,)], SamplingSettings(9, json_schema='{"type": "wrong"}'))
    with pytest.raises(InputError, match="the schema cannot be followed"):
        engine_of(writer, None).add(0, prompt)
