"""Read-only queries, as functions of a session."""
