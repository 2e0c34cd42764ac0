"""The write operations behind the unit of work."""
