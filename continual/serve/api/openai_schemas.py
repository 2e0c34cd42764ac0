"""Request bodies in OpenAI's format.

Options that would change an answer but are not supported are refused, not ignored.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from continual.serve.api.predict import BoundedString


class CompletionOptions(BaseModel):
    """Options of a completion or a chat; decoding is greedy, so that sampling options may only say so.

    Attributes:
        model: The name of a generation task.
        temperature: 0 or absent.
        top_p: 1 or absent.
        n: 1 or absent.
        max_tokens: Maximum number of tokens in the answer.
        max_completion_tokens: Maximum number of tokens in the answer; takes precedence over `max_tokens`.
        stream: Send the answer as server-sent events while it is generated.
        seed: Ignored: answers do not depend on chance.
        user: Ignored.
    """

    model_config = ConfigDict(extra="forbid")

    model: BoundedString
    temperature: Annotated[float, Field(ge=0, le=0)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    seed: int | None = None
    user: str | None = None

    @property
    def max_new_tokens(self) -> int | None:
        """Maximum number of tokens in the answer; None for no limit beside the task's own."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(CompletionOptions):
    """The body of `POST /v1/completions`: one prompt, or several."""

    prompt: BoundedString | Annotated[list[BoundedString], Field(min_length=1, fail_fast=True)]


class ContentPart(BaseModel):
    """A text part of a message."""

    type: Literal["text"]
    text: BoundedString


class Message(BaseModel):
    """A user's message; other roles are refused, since deltas are trained on texts, not on conversations."""

    role: Literal["user"]
    content: BoundedString | Annotated[list[ContentPart], Field(min_length=1, fail_fast=True)]

    @property
    def text(self) -> str:
        """The text of all parts, joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionRequest(CompletionOptions):
    """The body of `POST /v1/chat/completions`: one message."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1, fail_fast=True)]


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
