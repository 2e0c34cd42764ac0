from .conversation import Conversation, Message, Text, messages_of, parse_messages, text_as_json, text_of, text_parts
from .docstring_corpus import write_demo_stream, write_writing_stream
from .errors import ContinualError, DataError, InputError, StreamError
from .kind_schemas import KIND_SCHEMAS, KindSchema
from .load import load_stream, load_task, load_validation
from .python_data import task_from_rows
from .rows import AnswerSpan, GenerationTarget, LabelledTexts, Target, TaskData
from .source_spec import Source
from .spec import Budget, Method, Stream, TaskSpec, WarmStart
from .stream_file import read_stream, read_task
from .strict_model import StrictModel
from .template import Template

__all__ = [
    "KIND_SCHEMAS",
    "AnswerSpan",
    "Budget",
    "ContinualError",
    "Conversation",
    "DataError",
    "GenerationTarget",
    "InputError",
    "KindSchema",
    "LabelledTexts",
    "Message",
    "Method",
    "Source",
    "Stream",
    "StreamError",
    "StrictModel",
    "Target",
    "TaskData",
    "TaskSpec",
    "Template",
    "Text",
    "WarmStart",
    "load_stream",
    "load_task",
    "load_validation",
    "messages_of",
    "parse_messages",
    "read_stream",
    "read_task",
    "task_from_rows",
    "text_as_json",
    "text_of",
    "text_parts",
    "write_demo_stream",
    "write_writing_stream",
]
