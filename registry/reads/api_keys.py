"""Who may ask a server: its API keys, of which no more than a digest is kept, and how they are read."""

from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import CheckConstraint, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from registry.errors import not_found
from registry.reads.mapping import ListingRow, to_dicts
from registry.reads.pagination import paginate
from registry.schema.base import Base, check_in, now

Role = Literal["read", "admin"]  # admin: may also change what is learned and what serves


class ApiKey(Base):
    """A key that opens a server to whoever has its secret, until it is revoked.

    digest: `registry.key_digest` of the secret, which itself is nowhere.
    """

    __tablename__ = "api_keys"
    __table_args__ = (check_in("role", get_args(Role)), CheckConstraint("length(digest) = 64", name="digest"))

    name: Mapped[str] = mapped_column(unique=True)
    digest: Mapped[str] = mapped_column(unique=True)
    role: Mapped[Role] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    revoked_at: Mapped[datetime | None]


def list_keys(session: Session, *, limit: int | None = None, after: str | None = None) -> list[ListingRow]:
    """Rows of `continual keys`: key, role, created_at, revoked_at; in the order in which they were added.

    after: the name of the last key of the page before. Raises: NotFound for it.
    """
    last = None if after is None else (get_key(session, after).id,)
    found = select(ApiKey.name.label("key"), ApiKey.role, ApiKey.created_at, ApiKey.revoked_at)
    return [
        row | {moment: row[moment] and row[moment].isoformat() for moment in ("created_at", "revoked_at")}
        for row in to_dicts(session, paginate(found, ApiKey.id, limit=limit, after=last))
    ]


def active_keys(session: Session) -> dict[str, tuple[str, Role]]:
    """Name and role of every key that is not revoked, by the digest of its secret."""
    found = select(ApiKey.digest, ApiKey.name, ApiKey.role).where(ApiKey.revoked_at.is_(None))
    return {digest: (name, role) for digest, name, role in session.execute(found)}


def get_key(session: Session, name: str) -> ApiKey:
    """The key of that name, or NotFound."""
    found = session.scalar(select(ApiKey).where(ApiKey.name == name))
    if found is None:
        raise not_found("key", name, known=session.scalars(select(ApiKey.name)), first="Add one: `continual keys add`")
    return found
