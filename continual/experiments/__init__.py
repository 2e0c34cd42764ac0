"""Research only, not needed to understand the loop: strategies compared, studies of methods."""
