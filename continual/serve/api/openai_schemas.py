"""Request bodies in OpenAI's format.

Options that would change an answer but are not supported are refused by their names, not ignored. Those of them that
ask for nothing, as clients send them, are accepted.
"""

import sys
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from continual.generation.json_grammar import object_schema
from continual.generation.sampling import SamplingSettings
from continual.serve.api.predict import BoundedString
from tasks import Text, parse_messages, text_of

MAX_CHOICES = 16  # of one prompt
MAX_STOPS = 4
MAX_TOP_LOG_PROBS = 20
LEGACY_MAX_TOKENS = 16  # OpenAI's default for completions of a plain model

Empty = Annotated[list[Any], Field(max_length=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(BaseModel):
    """Options of a stream.

    Attributes:
        include_usage: Send an event with the numbers of tokens at last.
        include_obfuscation: Ignored: nothing is added to the events.
    """

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(BaseModel):
    """A JSON schema.

    Attributes:
        name: Ignored.
        description: Ignored.
        schema_: `schema`: the schema itself; without it any object.
        strict: Ignored: a schema is always followed.
    """

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The form of an answer.

    Attributes:
        type: `text`, `json_object`, or `json_schema`.
        json_schema: The schema of `json_schema`.
    """

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema_text(self) -> str | None:
        """The schema as JSON; None for any text."""
        return None if self.type == "text" else object_schema(self.json_schema.schema_ if self.json_schema else None)


class GenerationBody(BaseModel):
    """Options of a completion or a chat.

    Attributes:
        model: The name of a generation task, or of the backbone.
        temperature: Divides the scores of the tokens. 0 takes the most probable token each time; so does no value,
            unless `top_p`, `top_k`, `min_p` or `n` ask for drawn tokens: then it is 1.
        top_p: Draw from the most probable tokens that together reach this probability.
        top_k: Draw from so many of the most probable tokens; 0 and -1 for all.
        min_p: Draw from tokens of at least this share of the most probable one's probability.
        seed: Makes drawn tokens repeatable.
        n: Number of answers to each prompt.
        stop: Texts at which an answer ends; they are not part of it.
        max_tokens: Maximum number of tokens in the answer.
        max_completion_tokens: Maximum number of tokens in the answer; takes precedence over `max_tokens`.
        presence_penalty: Subtracted from the score of every token that was written already.
        frequency_penalty: Subtracted from the score of a token for each time it was written.
        repetition_penalty: Divides the score of tokens of the prompt and the answer.
        logit_bias: What is added to the score of a token, by its number.
        stream: Send the answer as server-sent events while it is written.
        stream_options: Options of the stream.
        response_format: The form of the answer: any text, a JSON object, or JSON of a schema.
        tools: Absent or empty.
        tool_choice: Without an effect, since there are no tools; neither `required` nor a tool.
        parallel_tool_calls: Ignored: there are no tools.
        functions: Absent or empty.
        function_call: Without an effect, since there are no functions.
        modalities: `["text"]` or absent.
        store: False or absent.
        metadata: Ignored.
        service_tier: Ignored.
        user: Ignored.
        safety_identifier: Ignored.
        prompt_cache_key: Ignored.
    """

    model_config = ConfigDict(extra="forbid")

    model: BoundedString
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: BoundedString | Annotated[list[BoundedString], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: dict[Annotated[int, Field(ge=0)], Bias] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: Empty | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Empty | None = None
    function_call: Literal["none", "auto"] | None = None
    modalities: tuple[Literal["text"]] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def log_prob_count(self) -> int | None:
        """How many most probable tokens are returned at each place; None for no log probabilities."""
        return None

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of tokens in the answer."""
        return self.max_completion_tokens or self.max_tokens or sys.maxsize

    def sampling(self, choice: int) -> SamplingSettings:
        """Return how the answer number `choice` of a prompt is written."""
        draws = (self.top_p or 1) < 1 or (self.top_k or 0) > 0 or self.min_p or (self.n or 1) > 1
        temperature = self.temperature if self.temperature is not None else float(bool(draws))
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingSettings(
            self.max_new_tokens,
            temperature=temperature,
            top_p=self.top_p or 1.0,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else self.seed + choice,
            stop=tuple(text for text in stop if text),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias=tuple((self.logit_bias or {}).items()),
            log_probs=self.log_prob_count,
            json_schema=self.response_format.schema_text if self.response_format else None,
        )


class CompletionRequest(GenerationBody):
    """The body of `POST /v1/completions`: one prompt, or several.

    Attributes:
        prompt: A text, or several.
        logprobs: Return the log probabilities of the tokens, and of so many most probable ones at each place.
        echo: False or absent.
        best_of: At most `n`, so that no answer is left out.
        suffix: Absent or empty.
    """

    prompt: BoundedString | Annotated[list[BoundedString], Field(min_length=1, fail_fast=True)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOG_PROBS)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def log_prob_count(self) -> int | None:
        """As asked for."""
        return self.logprobs

    @property
    def texts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ContentPart(BaseModel):
    """A text part of a message."""

    type: Literal["text"]
    text: BoundedString


class Message(BaseModel):
    """A message of a conversation.

    Attributes:
        role: Who says it.
        content: A text, or parts of one.
        name: Ignored.
    """

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: BoundedString | Annotated[list[ContentPart], Field(min_length=1, fail_fast=True)]
    name: str | None = None

    @property
    def text(self) -> str:
        """The text of all parts, joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionRequest(GenerationBody):
    """The body of `POST /v1/chat/completions`: a conversation, whose next message is written.

    Attributes:
        messages: The messages so far, the last one the user's.
        logprobs: Return the log probabilities of the tokens.
        top_logprobs: Return so many most probable tokens at each place.
    """

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOG_PROBS)] | None = None

    @property
    def conversation(self) -> Text:
        """The messages; a user's only message is an ordinary text."""
        messages = [{"role": message.role, "content": message.text} for message in self.messages]
        return text_of(parse_messages(messages) or ())

    @property
    def log_prob_count(self) -> int | None:
        """The number of most probable tokens where log probabilities are asked for."""
        return self.top_logprobs or 0 if self.logprobs else None


class EmbeddingsRequest(BaseModel):
    """The body of `POST /v1/embeddings`.

    Attributes:
        model: The backbone's name.
        input: A text, or several.
        encoding_format: Numbers, or little-endian 32-bit floats in base64.
        user: Ignored.
    """

    model_config = ConfigDict(extra="forbid")

    model: BoundedString
    input: BoundedString | Annotated[list[BoundedString], Field(min_length=1, fail_fast=True)]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
