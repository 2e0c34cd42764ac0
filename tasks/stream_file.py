"""Reading stream files and task files, both into a `Stream`, so that one code path learns both."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tasks.errors import StreamError
from tasks.spec import Stream, TaskFile, TaskSpec
from tasks.validation_messages import unknown_key_message, validation_message
from tasks.yaml_document import YamlDocument, parse_yaml

Model = TypeVar("Model", bound=BaseModel)


def read_stream(path: str | Path) -> Stream:
    """Read and validate a stream file; its relative data files start from the file's folder.

    Raises:
        StreamError: One line per problem: file, line, key, what is wrong, what is allowed.
    """
    document = parse_yaml(Path(path))
    if "folder" in document.value:
        line = document.line_of(("folder",))
        raise StreamError(f"{document.path}:{line}: folder: {unknown_key_message(('folder',), Stream)}")
    return _validated(document, Stream).model_copy(update={"folder": document.path.parent})


def read_task(path: str | Path) -> Stream:
    """Read and validate a task file: the keys of one entry of `tasks`, plus `backbone` and `seed`.

    Returns:
        A stream of that one task, with the task's name.

    Raises:
        StreamError: One line per problem: file, line, key, what is wrong, what is allowed.
    """
    document = parse_yaml(Path(path))
    file = _validated(document, TaskFile)
    task = TaskSpec(**{name: getattr(file, name) for name in file.model_fields_set & TaskSpec.model_fields.keys()})
    return Stream(name=task.name, backbone=file.backbone, seed=file.seed, tasks=(task,), folder=document.path.parent)


def _validated(document: YamlDocument, model: type[Model]) -> Model:
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        raise StreamError(validation_message(error, document, model)) from error
