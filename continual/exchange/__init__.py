"""Exchange deltas with other libraries: PEFT adapters, and transformers models with merged weights."""

from continual.exchange.champion_exports import ChampionExports, export_champions
from continual.exchange.exporting import FORMATS, ExportedDelta, commands_by_delta, export_delta
from continual.exchange.importing import import_delta
from continual.exchange.merging import merge_obstacle
from continual.exchange.peft import from_peft, to_peft

__all__ = [
    "FORMATS",
    "ChampionExports",
    "ExportedDelta",
    "commands_by_delta",
    "export_champions",
    "export_delta",
    "from_peft",
    "import_delta",
    "merge_obstacle",
    "to_peft",
]
