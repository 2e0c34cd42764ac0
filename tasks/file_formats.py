"""The formats of data files, by the ends of their names."""

from collections.abc import Mapping
from typing import Any

SOURCE_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {  # of a `Source`, by suffix
    ".csv": {"path": "csv"},
    ".tsv": {"path": "csv", "sep": "\t"},
    ".json": {"path": "json"},
    ".jsonl": {"path": "json"},
    ".ndjson": {"path": "json"},
    ".parquet": {"path": "parquet"},
}
