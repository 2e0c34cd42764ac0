"""A claim of one given position of a stream."""

from registry import Registry, claim_next

CLAIM_ATTEMPTS = 100  # no test begins one more often


def claim_position(registry: Registry, stream: str, *, number: int, holder: str) -> bool:
    """Claim a waiting or failed position, or a dead holder's; False where it is learned or held."""
    return claim_next(registry, stream, max_attempts={number: CLAIM_ATTEMPTS}, holder=holder) == number
