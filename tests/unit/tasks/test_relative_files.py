"""Relative `data_files` and `data_dir` start from the stream's folder, whatever builder reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tasks.source import available_splits, read_split
from tasks.source_location import SourceLocation
from tasks.source_spec import Source

ROWS = Dataset.from_dict({"text": ["one", "two"]})


def arrow(file: Path) -> None:
    import pyarrow

    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, ROWS.data.schema) as writer:
        writer.write_table(ROWS.data.table)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "csv": lambda file: ROWS.to_csv(file),
    "json": lambda file: ROWS.to_json(file),
    "text": lambda file: file.write_text("one\ntwo\n"),
    "parquet": lambda file: ROWS.to_parquet(file),
    "arrow": arrow,
}
SUFFIXES = {"text": "txt"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stream's folder that is not the current one."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for name in ("stream", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "stream"


def rows_of(folder: Path, **source: Any) -> int:
    origin = SourceLocation("t", Source(**source), folder)
    assert "train" in available_splits(origin)
    return len(read_split(origin, "train"))


@pytest.mark.parametrize("by", ["data_files", "data_dir"])
@pytest.mark.parametrize("builder", WRITERS)
def test_files_of_every_builder_lie_in_the_streams_folder(folder: Path, builder: str, by: str) -> None:
    data = folder / builder
    data.mkdir()
    WRITERS[builder](data / f"train.{SUFFIXES.get(builder, builder)}")
    files = {"data_files": {"train": f"{builder}/train.*"}} if by == "data_files" else {"data_dir": builder}
    assert rows_of(folder, path=builder, **files) == 2


def test_a_folder_of_images_and_a_folder_of_data_lie_there_too(folder: Path) -> None:
    image = folder / "pictures" / "train" / "cat" / "1.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"read later")
    assert rows_of(folder, path="imagefolder", data_dir="pictures") == 1
    (folder / "imagefolder").mkdir()  # a folder of the builder's name is no dataset
    assert rows_of(folder, path="imagefolder", data_files={"train": "pictures/train/**"}) == 1
    (folder / "mine").mkdir()
    ROWS.to_json(folder / "mine" / "train.jsonl")
    assert rows_of(folder, path="mine") == 2
    ROWS.save_to_disk(folder / "saved")
    assert rows_of(folder, path="saved") == 2
