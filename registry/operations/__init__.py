"""Operations with transactions of their own: claims, outbox, dump, restore, garbage collection."""
