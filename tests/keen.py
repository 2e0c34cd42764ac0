"""A worker that keeps a checkpoint after every epoch, and says at once what it has to say."""

import continual.checkpoint
import continual.claiming
import continual.engines.worker
from continual.engines.worker import Worker, WorkerConfig


class EagerWorker(Worker):
    def initialize(self, given: WorkerConfig) -> str:
        continual.checkpoint.MIN_INTERVAL_SECONDS, continual.checkpoint.MAX_OVERHEAD = 0.0, 1e9
        continual.claiming.POLL_SECONDS, continual.engines.worker.FLUSH_SECONDS = 0.05, 0.01
        return super().initialize(given)
