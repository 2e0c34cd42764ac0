"""The OpenAI-compatible API with OpenAI's client: completions, chats, streaming, sampling and embeddings."""

# ruff: noqa: F811 (fixtures are imported by their names)

import json
import math
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from openai import APIStatusError, NotFoundError, OpenAI, UnprocessableEntityError
from openai.types.chat import ChatCompletionChunk
from transformers import PreTrainedTokenizerBase

from continual import Learner, read_stream
from continual.deltas import load_delta
from continual.features.pooling import encode
from continual.features.tokens import tokenize
from tests.helpers.live_server import (  # noqa: F401
    BUDGET,
    Server,
    ask,
    echo_task,
    error_body,
    folder,
    learner,
    missing_blob,
    served,
    server,
    wait_until,
)
from tests.helpers.writing import prompt_ids, reference


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
            client.completions.create(model="echo", prompt="red cat", temperature=3)
    tokens = tokenize(learner.backbone, ["red cat", "blue dog"], max_length=32)
    vectors = encode(learner.backbone, tokens)
    assert torch.allclose(torch.tensor([item.embedding for item in embedded.data]), vectors, atol=1e-5)


@pytest.fixture
def client(served: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask_user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_tokens_are_streamed_as_they_are_written(client: OpenAI, learner: Learner) -> None:
    (expected,) = learner.predict(["red cat"], task="echo")
    texts = client.completions.create(model="echo", prompt="red cat", stream=True)
    parts = [chunk.choices[0] for chunk in texts]
    assert len(parts) > 3, "one event for each token that is a text"
    assert "".join(part.text for part in parts) == expected.label
    assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + ["length"]
    chat = client.chat.completions.create(model="echo", messages=ask_user("red cat"), stream=True)
    chunks = [chunk for chunk in chat if isinstance(chunk, ChatCompletionChunk)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.label
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    with pytest.raises(NotFoundError, match="echo"):
        client.completions.create(model="eccho", prompt="red cat", stream=True)


def test_several_prompts_and_answers_share_a_stream(client: OpenAI, learner: Learner) -> None:
    prompts = ["red cat", "blue dog"]
    expected = [prediction.label for prediction in learner.predict(prompts, task="echo")]
    texts, usage = dict.fromkeys(range(4), ""), None
    options: Any = {"stream_options": {"include_usage": True}, "temperature": 0, "n": 2}
    for chunk in client.completions.create(model="echo", prompt=prompts, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert [*texts.values()] == [text for text in expected for _ in range(2)]
    whole = client.completions.create(model="echo", prompt=prompts, n=2, temperature=0)
    assert [choice.text for choice in whole.choices] == [*texts.values()]
    assert usage == whole.usage


def test_max_tokens_ends_an_answer(client: OpenAI, learner: Learner) -> None:
    (expected,) = learner.predict(["red cat"], task="echo")
    for options in ({"max_tokens": 2}, {"max_tokens": 7, "extra_body": {"max_completion_tokens": 2}}):
        short: Any = client.completions.create(model="echo", prompt="red cat", **options)
        assert short.choices[0].finish_reason == "length"
        assert str(expected.label).startswith(short.choices[0].text)
        assert short.usage.completion_tokens == 2


def test_an_answer_ends_before_a_stop_text(client: OpenAI, learner: Learner) -> None:
    (expected,) = learner.predict(["red cat"], task="echo")
    text = str(expected.label)
    stop = text[len(text) // 2 :][:2]
    whole = client.completions.create(model="echo", prompt="red cat", stop=["never written", stop])
    assert whole.choices[0].text == text[: text.index(stop)].strip()
    assert whole.choices[0].finish_reason == "stop"
    parts = client.completions.create(model="echo", prompt="red cat", stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in parts) == whole.choices[0].text


def test_a_seed_draws_the_same_text_whoever_shares_the_batch(client: OpenAI) -> None:
    options: Any = {"temperature": 1.0, "seed": 7, "top_p": 0.95, "extra_body": {"top_k": 40, "min_p": 0.001}}
    alone = client.completions.create(model="echo", prompt="red cat", **options).choices[0].text
    with ThreadPoolExecutor(8) as threads:
        prompts = ["red cat", "blue dog", "red cat", "the sea"] * 2
        answers = [*threads.map(lambda p: client.completions.create(model="echo", prompt=p, **options), prompts)]
    assert all(a.choices[0].text == alone for a, p in zip(answers, prompts, strict=True) if p == "red cat")
    several = client.completions.create(model="echo", prompt="red cat", n=3, **options)
    assert several.choices[0].text == alone
    assert len({choice.text for choice in several.choices}) > 1
    assert several.usage
    assert several.usage.prompt_tokens == len(["red", "cat"]) * several.usage.prompt_tokens // 2


def test_log_probabilities_belong_to_the_written_tokens(client: OpenAI, learner: Learner) -> None:
    (expected,) = learner.predict(["red cat"], task="echo")
    text = client.completions.create(model="echo", prompt="red cat", logprobs=2).choices[0]
    assert text.logprobs
    assert text.logprobs.tokens
    assert text.logprobs.token_logprobs
    assert "".join(text.logprobs.tokens).strip() == text.text
    assert expected.score == pytest.approx(math.exp(sum(text.logprobs.token_logprobs) / len(text.logprobs.tokens)))
    chat = client.chat.completions.create(model="echo", messages=ask_user("red cat"), logprobs=True, top_logprobs=2)
    content = (chat.choices[0].logprobs and chat.choices[0].logprobs.content) or []
    assert [token.logprob for token in content] == text.logprobs.token_logprobs
    assert all(token.top_logprobs[0].logprob == token.logprob for token in content), "the most probable was written"
    streamed = client.chat.completions.create(model="echo", messages=ask_user("red cat"), logprobs=True, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in streamed if isinstance(chunk, ChatCompletionChunk)]
    tokens = [token.token for part in parts if part and part.content for token in part.content]
    assert tokens == text.logprobs.tokens


def test_biases_and_penalties_change_the_answer(client: OpenAI, learner: Learner) -> None:
    plain = client.completions.create(model="echo", prompt="red cat", logprobs=0).choices[0]
    assert plain.logprobs
    assert plain.logprobs.tokens
    first = learner.backbone.tokenizer(plain.logprobs.tokens[0], add_special_tokens=False)["input_ids"][0]
    biased = client.completions.create(model="echo", prompt="red cat", logit_bias={str(first): -100}, logprobs=0)
    assert biased.choices[0].logprobs
    assert biased.choices[0].logprobs.tokens
    assert biased.choices[0].logprobs.tokens[0] != plain.logprobs.tokens[0]
    penalized = client.completions.create(
        model="echo", prompt="red cat", presence_penalty=2, frequency_penalty=2, extra_body={"repetition_penalty": 10}
    )
    assert penalized.choices[0].text != plain.text


def test_a_classification_does_not_wait_for_texts_that_are_written(served: Server, client: OpenAI) -> None:
    name, log = served.serving.backbone.name, list[str]()
    with ThreadPoolExecutor(9) as threads:
        options: Any = {"model": name, "prompt": "red cat", "max_tokens": 30, "logit_bias": {"0": -100}}
        writing: list[Future[Any]] = [threads.submit(lambda: client.completions.create(**options)) for _ in range(8)]
        for answer in writing:
            answer.add_done_callback(lambda _: log.append("text"))
        for _ in range(5):
            ask(served, {"text": "red cat", "task": "mood"}).raise_for_status()
            log.append("label")
    assert log.index("label") < log.index("text"), "the first label came before any text"
    assert all(answer.result().usage.completion_tokens == 30 for answer in writing)


def test_a_text_that_nobody_waits_for_is_not_written_on(served: Server, client: OpenAI) -> None:
    options: Any = {"max_tokens": 30, "logit_bias": {"0": -100}, "n": 16, "temperature": 0}
    with client.completions.create(
        model=served.serving.backbone.name, prompt="red cat", stream=True, **options
    ) as stream:
        next(iter(stream))
    wait_until(lambda: served.client.get("/v1/load").json()["waiting"] == 0)
    assert len(served.serving.writer) == 0


NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "max_completion_tokens": None,
    "max_tokens": None,
    "metadata": {"run": "7"},
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "prompt_cache_key": "key",
    "response_format": {"type": "text"},
    "safety_identifier": "somebody",
    "seed": None,
    "service_tier": "auto",
    "stop": None,
    "store": False,
    "stream_options": None,
    "temperature": None,
    "tool_choice": "none",
    "tools": [],
    "top_logprobs": None,
    "top_p": 1,
    "user": "somebody",
}
REFUSED: dict[str, Any] = {
    "audio": {"format": "wav", "voice": "ash"},
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "red"},
    "reasoning_effort": "high",
    "response_format": {"type": "unknown"},
    "store": True,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "web_search_options": {},
}


def test_neutral_options_are_accepted_together(client: OpenAI, learner: Learner) -> None:
    (expected,) = learner.predict(["red cat"], task="echo")
    message = {"role": "user", "content": [{"type": "text", "text": "red cat"}], "name": "somebody"}
    answer = client.chat.completions.create(model="echo", messages=[message], **NEUTRAL)  # type: ignore[list-item]
    assert answer.choices[0].message.content == expected.label


@pytest.mark.parametrize("name", REFUSED)
def test_other_options_are_refused_by_name(client: OpenAI, name: str) -> None:
    with pytest.raises(UnprocessableEntityError, match=rf"body\.{name}"):
        client.chat.completions.create(model="echo", messages=ask_user("red cat"), extra_body={name: REFUSED[name]})


def test_a_task_of_single_texts_refuses_a_conversation(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, *ask_user("red cat")]
    with pytest.raises(UnprocessableEntityError, match=r"system, user: task 'echo' was learned without a chat"):
        client.chat.completions.create(model="echo", messages=messages)


SCHEMA = {
    "type": "object",
    "properties": {"is": {"enum": ["cat", "dog"]}, "n": {"type": "boolean"}},
    "required": ["is", "n"],
    "additionalProperties": False,
}


def test_an_answer_has_the_form_that_is_asked_for(client: OpenAI, learner: Learner) -> None:
    pytest.importorskip("llguidance", reason="llguidance (extra `json`) is not installed")
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
    for drawn in ({}, {"temperature": 1.0, "seed": 3}):
        options: Any = {"max_tokens": 38, "extra_body": {"response_format": wanted}, **drawn}
        answer = client.completions.create(model=learner.backbone.name, prompt="a", **options)
        document = json.loads(answer.choices[0].text)
        assert document["is"] in ("cat", "dog")
        assert document["n"] in (True, False)
        assert answer.choices[0].finish_reason == "stop"
    wrong: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wrong"}}}
    with pytest.raises(UnprocessableEntityError, match="response_format: the schema cannot be followed"):
        client.chat.completions.create(model="echo", messages=ask_user("cat"), response_format=wrong)


def test_the_missing_extra_is_named(client: OpenAI) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "llguidance.hf", None)
        with pytest.raises(UnprocessableEntityError, match=r"continual-deltas\[json\]"):
            client.chat.completions.create(
                model="echo", messages=ask_user("red cat"), response_format={"type": "json_object"}
            )


def test_the_plain_backbone_is_a_model_of_its_own(client: OpenAI, learner: Learner) -> None:
    name, backbone = learner.backbone.name, replace(learner.backbone, generates=True)
    assert client.models.retrieve(name).id == name
    (ids,) = prompt_ids(backbone, ["red cat"])
    answer = client.completions.create(model=name, prompt="red cat", max_tokens=8)
    expected = reference(backbone, None, ids, max_new_tokens=8)
    assert answer.choices[0].text == backbone.tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.usage
    assert answer.usage.prompt_tokens == len(ids)
    with pytest.raises(NotFoundError):
        client.completions.create(model="unknown", prompt="red cat")
    with pytest.raises(UnprocessableEntityError, match="has no chat template"):
        client.chat.completions.create(model=name, messages=ask_user("red cat"))
    with pytest.raises(APIStatusError, match="tokens and backbone") as refused:
        client.completions.create(model=name, prompt="red cat " * 50)
    assert refused.value.status_code == 413


def test_a_chat_with_the_plain_backbone_uses_its_template(client: OpenAI, learner: Learner) -> None:
    backbone, messages = replace(learner.backbone, generates=True), [{"role": "system", "content": "one"}]
    messages += [{"role": "user", "content": "red cat"}, {"role": "assistant", "content": "cat"}]
    messages += [{"role": "user", "content": "the sea"}]
    template = "{% for m in messages %}{{ m.role[0] }} {{ m.content }}\n{% endfor %}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone.tokenizer, "chat_template", template)
        answer = client.chat.completions.create(model=backbone.name, messages=messages, max_tokens=6)  # type: ignore[arg-type]
    text = "".join(f"{message['role'][0]} {message['content']}\n" for message in messages)
    expected = reference(backbone, None, prompt_ids(backbone, [text])[0], max_new_tokens=6)
    assert answer.choices[0].message.content == backbone.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_task_with_a_chat_template_takes_conversations(
    client: OpenAI, learner: Learner, folder: Path, served: Server
) -> None:
    tokenizer = learner.backbone.tokenizer
    template = "{% for m in messages %}{{ m.role[0] }} {{ m.content }}\n{% endfor %}"
    entry = echo_task(folder) | {"name": "talk", "chat_template": True}
    stream = {"name": "talks", "budget": BUDGET, "method": "bitfit", "tasks": [entry]}
    (folder / "talks.yaml").write_text(yaml.safe_dump(stream))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "chat_template", template)
        assert learner.run(read_stream(folder / "talks.yaml")) == {}
    wait_until(lambda: "talk" in served.serving.champions)
    messages: list[Any] = [{"role": "system", "content": "one"}, *ask_user("red cat")]
    answer = client.chat.completions.create(model="talk", messages=messages)
    (ids,) = prompt_ids(learner.backbone, ["s one\nu red cat\n"])
    (champion,) = (c for c in learner.registry.champions(learner.backbone.fingerprint) if c.task == "talk")
    delta = load_delta(learner.registry.blobs.get(champion.digest))
    assert answer.usage
    assert answer.usage.prompt_tokens == len(ids)
    writer = replace(learner.backbone, generates=True)
    written = reference(writer, delta, ids, max_new_tokens=delta.kind["longest"])
    assert answer.choices[0].message.content == tokenizer.decode(written, skip_special_tokens=True).strip()


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
    assert used
    assert all(len(threads) == 1 for threads in used.values())
