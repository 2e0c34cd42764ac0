"""What a task is and where its rows come from: no training, no database."""

from __future__ import annotations

from tasks.errors import ContinualError, DataError, InputError, StreamError
from tasks.installed import write_demo
from tasks.load import load_stream, load_task, load_validation
from tasks.needs import NEEDS
from tasks.read import read_stream, read_task
from tasks.rows import Quote, Rows, Target, TaskData, Text, Wording
from tasks.spec import Budget, Method, Source, Stream, TaskSpec, WarmStart
from tasks.template import Template
from tasks.written import Written

__all__ = [
    "NEEDS",
    "Budget",
    "ContinualError",
    "DataError",
    "InputError",
    "Method",
    "Quote",
    "Rows",
    "Source",
    "Stream",
    "StreamError",
    "Target",
    "TaskData",
    "TaskSpec",
    "Template",
    "Text",
    "WarmStart",
    "Wording",
    "Written",
    "load_stream",
    "load_task",
    "load_validation",
    "read_stream",
    "read_task",
    "write_demo",
]
