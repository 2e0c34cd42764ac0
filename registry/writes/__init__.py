"""What a unit of work writes."""
