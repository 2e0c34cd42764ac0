"""Reports on a stream, computed from the registry alone."""
