"""Learn a stream with the workers of a Ray cluster."""
