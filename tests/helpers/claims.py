"""One position of a stream, claimed for a test."""

from registry import Registry, claim_next

CLAIM_ATTEMPTS = 100  # no test begins one more often


def claim_position(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Takes a position that waits, failed, or whose holder is dead; False where it is learned or somebody's."""
    return claim_next(registry, stream, max_attempts={number: CLAIM_ATTEMPTS}, holder=holder) == number
