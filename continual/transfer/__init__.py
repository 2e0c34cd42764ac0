"""Rank learned tasks for a new one, and choose the delta that it starts from."""
