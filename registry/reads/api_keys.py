"""API keys of servers: the table, of digests only, and its queries."""

from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import CheckConstraint, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from registry.errors import not_found
from registry.reads.mapping import ListingRow, to_dicts
from registry.reads.pagination import paginate
from registry.schema.base import Base, check_in, now

Role = Literal["read", "admin"]  # admin may also change what is learned and what serves


class ApiKey(Base):
    """A key that grants access to a server until it is revoked.

    Attributes:
        name: The key's name.
        digest: `registry.key_digest` of the secret, which is not stored.
        role: `read`, or `admin`, which may also change what is learned and what serves.
        created_at: Time of creation.
        revoked_at: Time of revocation.
    """

    __tablename__ = "api_keys"
    __table_args__ = (check_in("role", get_args(Role)), CheckConstraint("length(digest) = 64", name="digest"))

    name: Mapped[str] = mapped_column(unique=True)
    digest: Mapped[str] = mapped_column(unique=True)
    role: Mapped[Role] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    revoked_at: Mapped[datetime | None]


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
