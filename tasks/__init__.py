"""What a task is and where its rows come from: no training, no database."""

from __future__ import annotations

from tasks.errors import ContinualError, DataError, InputError, StreamError
from tasks.installed import write_demo
from tasks.load import load_stream, load_task
from tasks.read import read_stream, read_task
from tasks.rows import Rows, TaskData, Text
from tasks.spec import Budget, Method, Source, Stream, TaskSpec, WarmStart

__all__ = [
    "Budget",
    "ContinualError",
    "DataError",
    "InputError",
    "Method",
    "Rows",
    "Source",
    "Stream",
    "StreamError",
    "TaskData",
    "TaskSpec",
    "Text",
    "WarmStart",
    "load_stream",
    "load_task",
    "read_stream",
    "read_task",
    "write_demo",
]
