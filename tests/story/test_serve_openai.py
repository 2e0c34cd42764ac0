"""The OpenAI-compatible API with OpenAI's client: completions, streaming and embeddings."""

# ruff: noqa: F811 (fixtures are imported by their names)

import itertools
import threading
from typing import Any

import pytest
import torch
from openai import NotFoundError, OpenAI, UnprocessableEntityError
from openai.types.chat import ChatCompletionChunk
from transformers import PreTrainedTokenizerBase

from continual import Learner
from continual.features.pooling import encode
from continual.features.tokens import tokenize
from continual.inference.predictor import Predictor
from tests.helpers.live_server import Server, error_body, folder, learner, missing_blob, served, server  # noqa: F401


def test_openai_s_client_is_answered(served: Server, learner: Learner) -> None:
    (expected,) = learner.predict(["red cat"], task="echo")
    with OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        assert {"echo", "mood"} <= {model.id for model in client.models.list()}
        completion = client.completions.create(model="echo", prompt="red cat", temperature=0)
        message = {"role": "user", "content": "red cat"}
        chat = client.chat.completions.create(model="echo", messages=[message])  # type: ignore[list-item]
        assert completion.choices[0].text == chat.choices[0].message.content == expected.label
        assert completion.usage
        assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
        embedded = client.embeddings.create(model=learner.backbone.name, input=["red cat", "blue dog"])
        with pytest.raises(UnprocessableEntityError, match="kind classification"):
            client.completions.create(model="mood", prompt="red cat")
        with pytest.raises(UnprocessableEntityError, match="temperature"):
            client.completions.create(model="echo", prompt="red cat", temperature=1)
    tokens = tokenize(learner.backbone, ["red cat", "blue dog"], max_length=32)
    vectors = encode(learner.backbone, tokens)
    assert torch.allclose(torch.tensor([item.embedding for item in embedded.data]), vectors, atol=1e-5)


def test_tokens_are_streamed_during_generation(served: Server, learner: Learner) -> None:
    tokens: list[str] = []
    predictor = Predictor(learner.backbone, learner.registry)
    (expected,) = predictor.predict(["red cat"], task=["echo"], on_token=[tokens.append])
    assert len(tokens) > 2
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(tokens))
    assert tokens[-1] == expected.label
    message = {"role": "user", "content": "red cat"}
    with OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        texts = client.completions.create(model="echo", prompt="red cat", stream=True)
        parts = [chunk.choices[0] for chunk in texts]
        chat = client.chat.completions.create(model="echo", messages=[message], stream=True)  # type: ignore[list-item]
        pieces = [chunk.choices[0].delta.content or "" for chunk in chat if isinstance(chunk, ChatCompletionChunk)]
        assert "".join(part.text for part in parts) == "".join(pieces) == expected.label
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + ["stop"]
        with pytest.raises(NotFoundError, match="echo"):
            client.completions.create(model="eccho", prompt="red cat", stream=True)
        with pytest.raises(UnprocessableEntityError, match="2 prompts"):
            client.completions.create(model="echo", prompt=["red cat", "red cat"], stream=True)
        short = client.completions.create(model="echo", prompt="red cat", max_tokens=1)
        assert short.choices[0].finish_reason == "length"
        assert expected.label.startswith(short.choices[0].text)


def test_a_stream_that_cannot_start_has_an_error_status(learner: Learner) -> None:
    with missing_blob(learner, "echo"), server(learner) as running:
        response = running.client.post("/v1/completions", json={"model": "echo", "prompt": "red cat", "stream": True})
        assert "BlobError" in error_body(response, 503)


def test_threads_do_not_share_a_tokenizer(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[object, set[int]] = {}
    call = PreTrainedTokenizerBase.__call__

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.setdefault(self, set()).add(threading.get_ident())  # it is set to cut texts, and to cut none, by each call
        return call(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", recorded)
    for stream in (False, True):
        body = {"model": "echo", "prompt": "red cat", "max_tokens": 1, "stream": stream}
        assert served.client.post("/v1/completions", json=body).status_code == 200
    assert len(used) == 2
    assert all(len(threads) == 1 for threads in used.values())
