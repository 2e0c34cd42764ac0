"""Operations on a whole registry, each in its own units of work."""
