"""Queries of the API keys of servers."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import not_found
from registry.reads.mapping import ListingRow, to_dicts
from registry.reads.pagination import paginate
from registry.schema.tables import ApiKey, Role


def list_keys(session: Session, *, limit: int | None = None, after: str | None = None) -> list[ListingRow]:
    """List all keys, in order of creation.

    Args:
        session: A session.
        limit: Maximum number of rows.
        after: The name of the last key of the previous page.

    Returns:
        Rows of `continual keys`: key, role, created_at, revoked_at.

    Raises:
        NotFound: There is no key `after`.
    """
    cursor = None if after is None else (get_key(session, after).id,)
    query = select(ApiKey.name.label("key"), ApiKey.role, ApiKey.created_at, ApiKey.revoked_at)
    return [
        row | {column: row[column] and row[column].isoformat() for column in ("created_at", "revoked_at")}
        for row in to_dicts(session, paginate(query, ApiKey.id, limit=limit, after=cursor))
    ]


def active_keys(session: Session) -> dict[str, tuple[str, Role]]:
    """Return (name, role) of every key that is not revoked, by the digest of its secret."""
    query = select(ApiKey.digest, ApiKey.name, ApiKey.role).where(ApiKey.revoked_at.is_(None))
    return {digest: (name, role) for digest, name, role in session.execute(query)}


def has_keys(session: Session) -> bool:
    """Return whether any key was ever added; revoked keys count."""
    return session.scalar(select(ApiKey.id).limit(1)) is not None


def get_key(session: Session, name: str) -> ApiKey:
    """Return the key called `name`.

    Raises:
        NotFound: There is no such key.
    """
    row = session.scalar(select(ApiKey).where(ApiKey.name == name))
    if row is None:
        raise not_found(
            "key", name, known_names=session.scalars(select(ApiKey.name)), advice="Add one: `continual keys add`"
        )
    return row
