"""Task and stream specifications, and the loading of their rows: no training, no database."""

from __future__ import annotations

from tasks.docstring_corpus import write_demo_stream
from tasks.errors import ContinualError, DataError, InputError, StreamError
from tasks.kind_schemas import KIND_SCHEMAS, KindSchema
from tasks.load import load_stream, load_task, load_validation
from tasks.rows import AnswerSpan, GenerationTarget, LabelledTexts, Target, TaskData, Text
from tasks.spec import Budget, Method, Source, Stream, TaskSpec, WarmStart
from tasks.stream_file import read_stream, read_task
from tasks.strict_model import StrictModel
from tasks.template import Template

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
    "write_demo_stream",
]
