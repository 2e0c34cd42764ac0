"""Transfer: rank learned tasks by similarity to a new one, and choose the delta that it starts from."""
