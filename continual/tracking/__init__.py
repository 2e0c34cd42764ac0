"""MLflow as a projection of the registry: everything it shows is read from there, whenever MLflow can be reached.

One run per stream and, nested in it, one per delta; one model per task, whose alias `champion` is what serves. What
MLflow must be told is written into the registry's outbox together with what it tells of; senders empty it.
"""

from continual.tracking.sender import SendResult, background_sender, flush_outbox, warn_unsent
from continual.tracking.study_runs import log_study
from continual.tracking.ui import serve_ui

__all__ = ["SendResult", "background_sender", "flush_outbox", "log_study", "serve_ui", "warn_unsent"]
