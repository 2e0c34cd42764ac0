"""Inference: answer inputs with the serving deltas, routed to their tasks where no task is named."""
