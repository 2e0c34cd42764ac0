"""MLflow as a projection of the registry: everything it shows is read from there, whenever MLflow can be reached.

One run per stream and, nested in it, one per delta; one model per task, whose alias `champion` is what serves. What
MLflow must be told is written into the registry's outbox together with what it tells of; senders empty it.
"""

from continual.tracking.sender import Sent, sync, telling, warn_of_rest
from continual.tracking.studies import tell_study
from continual.tracking.ui import serve_ui

__all__ = ["Sent", "serve_ui", "sync", "tell_study", "telling", "warn_of_rest"]
