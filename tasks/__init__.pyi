from .docstring_corpus import write_demo_stream
from .errors import ContinualError, DataError, InputError, StreamError
from .kind_schemas import KIND_SCHEMAS, KindSchema
from .load import load_stream, load_task, load_validation
from .python_data import task_from_rows
from .rows import AnswerSpan, GenerationTarget, LabelledTexts, Target, TaskData, Text
from .spec import Budget, Method, Source, Stream, TaskSpec, WarmStart
from .stream_file import read_stream, read_task
from .strict_model import StrictModel
from .template import Template

__all__ = [
    "KIND_SCHEMAS",
    "AnswerSpan",
    "Budget",
    "ContinualError",
    "DataError",
    "GenerationTarget",
    "InputError",
    "KindSchema",
    "LabelledTexts",
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
    "read_stream",
    "read_task",
    "task_from_rows",
    "write_demo_stream",
]
