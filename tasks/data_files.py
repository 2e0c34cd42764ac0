"""Data files as the builders of `datasets` open them: by path or URL, in archives, decompressed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from tasks.columns import FileSchema
from tasks.csv_check import read_csv_header

_CHUNK_SIZE = 2**20  # bytes


@dataclass(frozen=True)
class DataFile:
    """One file that a builder reads.

    Attributes:
        name: The file as the user knows it, for messages.
        address: What `datasets` opens: a path, or a chain such as `gzip://a.csv::/data/a.csv.gz`.
    """

    name: str
    address: str

    def open_bytes(self) -> Any:
        """Open the decompressed bytes."""
        from datasets.utils.file_utils import xopen

        return xopen(self.address, "rb")

    @contextmanager
    def open_text(self, encoding: str | None) -> Iterator[TextIO]:
        """Open the text, with its line ends as they are; a byte order mark is dropped."""
        encoding = encoding if encoding and encoding.lower() not in ("utf-8", "utf8") else "utf-8-sig"
        with self.open_bytes() as stream, io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
            yield text


def open_files(files: Sequence[str]) -> tuple[DataFile, ...]:
    """Download URLs, and return what the builders of `datasets` open for each file or archive.

    Args:
        files: Paths and URLs.
    """
    from datasets import DownloadConfig, DownloadManager

    manager = DownloadManager(download_config=DownloadConfig(extract_on_the_fly=True, disable_tqdm=True))
    return tuple(
        DataFile(file, str(address))
        for file in files
        for address in manager.iter_files([manager.download_and_extract(file)])
    )


def content_digest(files: Sequence[DataFile]) -> str:
    """Return a digest of the files' names and decompressed contents."""
    digest = hashlib.sha256()
    for file in files:
        content = hashlib.sha256()
        with file.open_bytes() as stream:
            while chunk := stream.read(_CHUNK_SIZE):
                content.update(chunk)
        digest.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + content.digest())
    return digest.hexdigest()[:16]


def csv_schema(file: DataFile, location: str, options: Mapping[str, Any]) -> FileSchema:
    """Check a CSV file strictly, and return its columns as pandas names them.

    Raises:
        DataError: See `read_csv_header`.
    """
    import pandas
    from datasets.packaged_modules.csv.csv import CsvConfig

    with file.open_text(options.get("encoding")) as lines:
        header = read_csv_header(lines, file=file.name, location=location, options=options)
    arguments = CsvConfig(**options).pd_read_csv_kwargs | {"chunksize": None, "nrows": 0}
    with file.open_bytes() as stream:
        columns = [str(name) for name in pandas.read_csv(stream, **arguments).columns]
    return FileSchema(file.name, tuple(columns), repeated=tuple({name for name in header if header.count(name) > 1}))


def arrow_schema(file: DataFile, builder: str) -> FileSchema:
    """Return the columns of a Parquet or Arrow file with their features in `datasets`."""
    import pyarrow
    import pyarrow.parquet
    from datasets import Features

    with file.open_bytes() as stream:
        if builder == "parquet":
            schema = pyarrow.parquet.read_schema(stream)
        else:
            try:
                schema = pyarrow.ipc.open_stream(stream).schema
            except (OSError, pyarrow.ArrowInvalid):
                stream.seek(0)
                schema = pyarrow.ipc.open_file(stream).schema
    repeated = tuple({name for name in schema.names if schema.names.count(name) > 1})
    features = {} if repeated else dict(Features.from_arrow_schema(schema))
    return FileSchema(file.name, tuple(schema.names), repeated, features)


def json_columns(files: Sequence[DataFile], options: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """Return the columns of JSON files as written, where the reader of Arrow would take strings for dates.

    Returns:
        One value per row; None if a file is not a list of objects, or one object per line.
    """
    rows: list[Any] = []
    for file in files:
        with file.open_text(options.get("encoding")) as stream:
            text = stream.read()
        try:
            part = _json_rows(text, options.get("field"))
        except ValueError:
            return None
        if not isinstance(part, list) or not all(isinstance(row, dict) for row in part):
            return None
        rows += part
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _json_rows(text: str, field: str | None) -> Any:
    if field is not None:
        return json.loads(text)[field]
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]
