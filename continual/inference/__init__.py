"""Answer inputs with the deltas that serve, routed to their tasks where no task is named."""
