"""Deltas to and from the formats of others: PEFT's folders, and plain transformers folders with merged weights."""

from continual.exchange.exporting import FORMATS, export_delta
from continual.exchange.importing import import_delta
from continual.exchange.peft import from_peft, to_peft

__all__ = ["FORMATS", "export_delta", "from_peft", "import_delta", "to_peft"]
