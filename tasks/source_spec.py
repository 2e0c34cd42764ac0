"""Where the rows of a task are read from: the arguments of `datasets.load_dataset`."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tasks.memory import MemoryRows
from tasks.strict_model import StrictModel

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
READER_OPTIONS: dict[str, tuple[str, ...]] = {  # arguments of a builder that neither run code nor drop rows
    "csv": (
        *("sep", "delimiter", "encoding", "quotechar", "quoting", "escapechar", "doublequote", "skipinitialspace"),
        *("skiprows", "header", "names", "column_names"),
    ),
    "json": ("encoding", "field"),
    "text": ("encoding", "sample_by", "keep_linebreaks"),
}
IN_MEMORY = "memory"  # path of rows that a Python process holds
LOCAL_BUILDERS = ("arrow", "csv", "json", "parquet", "text")  # builders of `datasets` that read the user's own files
MAX_NAME_LENGTH = 4096  # characters of a path, a name of a column or of a model
Column = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
Location = Annotated[str, Field(max_length=MAX_NAME_LENGTH)]


def _files(value: Any) -> Any:
    is_list = isinstance(value, list | tuple) and value and all(isinstance(v, str) and v for v in value)
    if not (is_list or (isinstance(value, str) and value)):
        raise PydanticCustomError("string_type", "should be the name of one file, or a list of such names")
    if longer := [name for name in ([value] if isinstance(value, str) else value) if len(name) > MAX_NAME_LENGTH]:
        raise ValueError(f"the name of a file has {len(longer[0])} characters; at most {MAX_NAME_LENGTH} are allowed")
    return value


def _encoding(value: str | None) -> str | None:
    if value is not None:
        try:
            codecs.lookup(value)
        except LookupError:
            raise ValueError("should be an encoding of Python, such as utf-8, latin-1 or cp1252") from None
    return value


def optional(description: str, **limits: Any) -> Any:
    """Return an optional field, which a dump leaves out where it is None.

    So specs that were stored before the field existed keep their digests.
    """
    return Field(default=None, description=description, exclude_if=lambda value: value is None, **limits)


Encoding = Annotated[str | None, AfterValidator(_encoding)]
Files = Annotated[str | list[str], BeforeValidator(_files)]


class Source(StrictModel):
    """Arguments of `datasets.load_dataset`.

    Attributes:
        path: A hub dataset, a folder, or a builder of local files such as `json` or `csv`; `memory` stands for rows
            that were given in Python, which a spec as JSON does not hold.
        name: The dataset's configuration.
        data_files: Files by the source's split name.
        data_dir: Folder of the data files.
        revision: Revision of a hub dataset.
        splits: The source's names of our splits, such as `{validation: dev}`; the default is the same name.
        sep: Separator of CSV fields, one character; `delimiter` is the same.
        delimiter: See `sep`.
        encoding: Encoding of CSV, JSON or text files, such as `latin-1`.
        quotechar: Quote of CSV fields.
        quoting: 0, or 3 where quotes of a CSV file are plain characters.
        escapechar: Character before a plain quote or separator of CSV.
        doublequote: Whether a doubled quote in a quoted CSV field is a plain quote.
        skipinitialspace: Whether spaces after a CSV separator are dropped.
        skiprows: Lines before the CSV header.
        header: Rows before the CSV header, after `skiprows`.
        names: Column names of CSV files without a header; `column_names` is the same.
        column_names: See `names`.
        field: Key of a JSON document whose value has the rows.
        sample_by: Rows of text files: line, paragraph or document.
        keep_linebreaks: Whether rows of text files keep their line ends.
    """

    path: Column
    name: Location | None = None
    data_files: dict[str, Files] | None = None
    data_dir: Location | None = None
    revision: Location | None = None
    splits: dict[Split, Column] = Field(default_factory=dict)
    sep: str | None = optional("separator of fields", min_length=1, max_length=1)
    delimiter: str | None = optional("separator of fields", min_length=1, max_length=1)
    encoding: Encoding = optional("encoding of the files")
    quotechar: str | None = optional("quote of fields", min_length=1, max_length=1)
    quoting: Literal[0, 3] | None = optional("3: quotes are plain characters")
    escapechar: str | None = optional("escape of a quote", min_length=1, max_length=1)
    doublequote: bool | None = optional("a doubled quote is a plain quote")
    skipinitialspace: bool | None = optional("drop spaces after a separator")
    skiprows: int | None = optional("lines before the header", ge=0)
    header: int | None = optional("rows before the header", ge=0)
    names: list[Column] | None = optional("column names of files without a header", min_length=1)
    column_names: list[Column] | None = optional("column names of files without a header", min_length=1)
    field: str | None = optional("key of the rows")
    sample_by: Literal["line", "paragraph", "document"] | None = optional("what a row of a text file is")
    keep_linebreaks: bool | None = optional("keep line ends")
    _tables: dict[Split, MemoryRows] = PrivateAttr(default_factory=dict)

    @classmethod
    def from_tables(cls, tables: Mapping[Split, MemoryRows]) -> Source:
        """Return the source of rows in memory, which are never serialised."""
        source = cls(path=IN_MEMORY)
        source._tables = dict(tables)
        return source

    @property
    def in_memory(self) -> bool:
        """True if the rows were given in Python, in this process or an earlier one."""
        return self.path == IN_MEMORY

    @property
    def tables(self) -> Mapping[Split, MemoryRows]:
        """Rows in memory by split; empty for other sources, and where the spec was read from JSON."""
        return self._tables

    @field_validator("path")
    @classmethod
    def _path_runs_no_code(cls, value: str) -> str:
        if value == "pandas":
            raise ValueError(
                "pickles of pandas are not read, because a pickle can run any code; save the table with to_parquet() "
                "and read it by path: parquet"
            )
        return value

    @model_validator(mode="after")
    def _options_fit_path(self) -> Source:
        options = READER_OPTIONS.get(self.path, ())
        if unknown := [key for key in self.options if key not in options]:
            allowed = (
                f"allowed are {', '.join(options)}" if options else f"only path: {' | '.join(READER_OPTIONS)} has some"
            )
            raise ValueError(f"path: {self.path} has no option {', '.join(unknown)}; {allowed}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the builder of local files, such as `{"sep": ";"}`."""
        names = {name for options in READER_OPTIONS.values() for name in options}
        return {name: value for name, value in self if name in names and value is not None}

    @model_validator(mode="after")
    def _local_files_are_named(self) -> Source:
        if self.path in LOCAL_BUILDERS and not (self.data_files or self.data_dir):
            raise ValueError(f"path: {self.path} reads your own files; name them in data_files: {{train: FILE, …}}")
        readable = {self.split_name(split).partition("[")[0] for split in SPLITS}
        # A file under an unused split name would be ignored silently, and its split carved from train.
        if unused := sorted(set(self.data_files or {}) - readable):
            raise ValueError(
                f"data_files: {', '.join(map(repr, unused))} would never be read; allowed are "
                f"{', '.join(sorted(readable))}; rename it, or say which split it is: splits: {{validation: NAME}}"
            )
        return self

    def split_name(self, split: Split) -> str:
        """Return the source's name of our `split`."""
        return self.splits.get(split, split)
