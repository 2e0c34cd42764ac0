"""A Ray worker that writes a checkpoint after every epoch and forwards events without delay."""

import continual.learning.checkpoint
import continual.streams.ray.worker
import continual.streams.worker_loop
from continual.streams.ray.worker import Worker, WorkerConfig


class EagerWorker(Worker):
    def initialize(self, config: WorkerConfig) -> str:
        continual.learning.checkpoint.MIN_INTERVAL_SECONDS, continual.learning.checkpoint.MAX_OVERHEAD = 0.0, 1e9
        continual.streams.worker_loop.POLL_SECONDS, continual.streams.ray.worker.FLUSH_SECONDS = 0.05, 0.01
        return super().initialize(config)
