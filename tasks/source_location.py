"""A task's source with the folder that its paths are relative to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.source_spec import LOCAL_BUILDERS, Source, Split


@dataclass(frozen=True)
class SourceLocation:
    """A task's source with the base folder of its relative paths.

    Attributes:
        task: The task's name, for messages.
        source: The source as specified.
        folder: Base of relative paths.
    """

    task: str
    source: Source
    folder: Path

    def split_location(self, split: Split) -> str:
        """Return the name of one of the task's splits for messages, with the type of a table in memory."""
        table = self.source.tables.get(split)
        return f"task {self.task!r}, {split}{f' ({table.type_name})' if table else ''}"

    @property
    def local(self) -> bool:
        """True if the rows are the user's local files, read by a builder of `datasets`."""
        return self.source.path in LOCAL_BUILDERS

    def resolve_path(self, path: str) -> str:
        """Return `path` resolved against the folder; of a URL, only the path of an archive in it is."""
        *inner, outer = path.split("::") if "://" in path else [path]
        resolved = outer if "://" in outer else str((self.folder / outer).absolute())
        return "::".join([*inner, resolved])

    @property
    def is_folder(self) -> bool:
        """True if `path` is a folder of data; a builder that is given files is one, whatever folder has its name."""
        named_files = self.source.data_files or self.source.data_dir
        return not (self.local or (self.packaged and named_files)) and (self.folder / self.source.path).is_dir()

    @property
    def packaged(self) -> bool:
        """True if `path` is a builder of `datasets`, which reads the user's own files."""
        from datasets import packaged_modules

        return self.source.path in packaged_modules._PACKAGED_DATASETS_MODULES

    @property
    def saved(self) -> bool:
        """True if `path` is a folder written by `save_to_disk` of `datasets`."""
        folder = self.folder / self.source.path
        return self.is_folder and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
