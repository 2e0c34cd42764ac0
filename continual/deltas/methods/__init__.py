"""One file per method of parameter-efficient fine-tuning; importing the package fills the catalogue."""

from continual.deltas.methods import catalog  # noqa: F401
