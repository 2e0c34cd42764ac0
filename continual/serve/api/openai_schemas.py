"""What OpenAI's clients send. What would change an answer and is not done here is refused, not overlooked."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from continual.serve.api.predict import BoundedString


class CompletionOptions(BaseModel):
    """What a client may say besides: answers are the most probable, whatever it says of chance."""

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
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(CompletionOptions):
    """One text to be continued, or several."""

    prompt: BoundedString | Annotated[list[BoundedString], Field(min_length=1)]


class ContentPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: BoundedString


class Message(BaseModel):
    """What a user says: a task's delta has learned to answer texts, and no conversations."""

    role: Literal["user"]
    content: BoundedString | Annotated[list[ContentPart], Field(min_length=1)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionRequest(CompletionOptions):
    """One message."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1)]


class EmbeddingsRequest(BaseModel):
    """Texts whose features are wanted. model: the backbone's name."""

    model_config = ConfigDict(extra="forbid")

    model: BoundedString
    input: BoundedString | Annotated[list[BoundedString], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
