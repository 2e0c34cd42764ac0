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
    return _stream(parse_yaml(Path(path)))


def read_task(path: str | Path, name: str | None = None) -> Stream:
    """Read and validate a task file: the keys of one entry of `tasks`, plus `backbone` and `seed`.

    Args:
        path: A task file, or a stream file, whose defaults, seed and folder then hold for the task.
        name: The name of the task, needed for a stream file.

    Returns:
        A stream of that one task, with the task's name.

    Raises:
        StreamError: One line per problem: file, line, key, what is wrong, what is allowed.
    """
    document = parse_yaml(Path(path))
    if "tasks" in document.value:
        return _task_of_stream(_stream(document), name, path=document.path)
    file = _validated(document, TaskFile)
    if name not in (None, file.name):
        raise StreamError(f"{path} is the file of task {file.name!r}, not of {name!r}; leave --task out, or mend it")
    task = TaskSpec(**{name: getattr(file, name) for name in file.model_fields_set & TaskSpec.model_fields.keys()})
    return Stream(name=task.name, backbone=file.backbone, seed=file.seed, tasks=(task,), folder=document.path.parent)


def _stream(document: YamlDocument) -> Stream:
    if "folder" in document.value:
        line = document.line_of(("folder",))
        raise StreamError(f"{document.path}:{line}: folder: {unknown_key_message(('folder',), Stream)}")
    return _validated(document, Stream).model_copy(update={"folder": document.path.parent})


def _task_of_stream(stream: Stream, name: str | None, *, path: Path) -> Stream:
    names = [task.name for task in stream.tasks]
    if name is None:
        raise StreamError(
            f"{path} is a stream file, and one task is needed: `continual learn {path} --task NAME` learns one of "
            f"{', '.join(names)}, `continual run {path}` all that are not learned yet"
        )
    if name not in names:
        raise StreamError(f"{path} has no task {name!r}; give one of {', '.join(names)}")
    return stream.model_copy(update={"name": name, "tasks": (stream.tasks[names.index(name)],)})


def _validated(document: YamlDocument, model: type[Model]) -> Model:
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        raise StreamError(validation_message(error, document, model)) from error
