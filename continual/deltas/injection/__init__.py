"""Apply deltas, one or many in a mixed batch, to a frozen backbone, and undo it exactly."""
