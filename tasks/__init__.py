"""What a task is and where its rows come from: no training, no database."""

from __future__ import annotations

from tasks.errors import ContinualError, DataError, InputError, StreamError
from tasks.installed import write_demo_stream
from tasks.load import load_stream, load_task, load_validation
from tasks.needs import KIND_SCHEMAS
from tasks.read import read_stream, read_task
from tasks.rows import AnswerSpan, GenerationTarget, LabelledTexts, Target, TaskData, Text
from tasks.spec import Budget, Method, Source, Stream, TaskSpec, WarmStart
from tasks.template import Template
from tasks.written import StrictModel

__all__ = [
    "KIND_SCHEMAS",
    "AnswerSpan",
    "Budget",
    "ContinualError",
    "DataError",
    "GenerationTarget",
    "InputError",
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
