"""MLflow as a projection of the registry, brought up to date whenever MLflow is reachable.

There is one run per stream and, nested in it, one per delta; and one model per task, whose alias `champion` is the
serving version. Each change is written into the registry's outbox together with a message for MLflow; senders send the
messages and delete them.
"""

from continual.tracking.sender import SendResult, background_sender, flush_outbox, warn_unsent
from continual.tracking.study_runs import log_study
from continual.tracking.ui import serve_ui

__all__ = ["SendResult", "background_sender", "flush_outbox", "log_study", "serve_ui", "warn_unsent"]
