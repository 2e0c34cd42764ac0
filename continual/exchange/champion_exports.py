"""Export every delta that serves on a backbone, one folder each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from continual.backbones.backbone import Backbone
from continual.errors import DeltaError, ExchangeError
from continual.exchange.exporting import ExportedDelta, export_delta
from continual.exchange.files import create_empty_folder
from registry import Registry
from registry.errors import BlobError


@dataclass(frozen=True)
class ChampionExports:
    """The exports of a backbone's champions.

    Attributes:
        exported: Those that were written, in the order in which their tasks were learned.
        refused: The others by name, with the reason.
    """

    exported: tuple[ExportedDelta, ...]
    refused: Mapping[str, str]


def export_champions(
    backbone: Backbone, registry: Registry, folder: Path, *, file_format: str, rank: int | None = None
) -> ChampionExports:
    """Export every champion of a backbone to a folder of its name, such as `sst2@1`, in one folder.

    Args:
        backbone: The backbone.
        registry: The registry.
        folder: a new or empty folder.
        file_format: As for `export_delta`.
        rank: As for `export_delta`.

    Raises:
        ExchangeError: None of them can be exported, or the folder is not empty.
    """
    champions = [champion.delta for champion in registry.champions(backbone.fingerprint)]
    if not champions:
        raise ExchangeError(
            f"no delta serves on backbone {backbone.name!r}, so there is nothing to export; learn a task"
        )
    create_empty_folder(folder)
    exported: list[ExportedDelta] = []
    refused: dict[str, str] = {}
    for name in champions:
        try:
            target = folder / name
            exported.append(export_delta(backbone, registry, name, folder=target, file_format=file_format, rank=rank))
        except (ExchangeError, DeltaError, BlobError) as error:
            refused[name] = str(error).removeprefix(f"{name}: ")
    if not exported:
        folder.rmdir()
        reasons = "\n".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ExchangeError(f"no delta can be exported as {file_format}:\n{reasons}")
    return ChampionExports(tuple(exported), refused)
