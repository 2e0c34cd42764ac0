"""Creating and revoking API keys: the secret is returned once, only its digest is stored."""

from datetime import datetime
from hashlib import sha256
from secrets import token_urlsafe
from typing import get_args

from sqlalchemy import select

from registry.errors import NothingToDo
from registry.names import validate_name
from registry.reads.api_keys import get_key
from registry.registry import Registry
from registry.schema.base import now
from registry.schema.tables import ApiKey, Role
from registry.unit_of_work import UnitOfWork
from tasks.errors import InputError

PREFIX = "ck_"  # lets scanners for leaked secrets recognise a key
RANDOM_BYTES = 32


def add_key(registry: Registry, name: str, *, role: Role) -> str:
    """Register an API key and return its secret, which cannot be looked up later.

    Args:
        registry: The registry.
        name: The key's name.
        role: `read` or `admin`.

    Raises:
        InputError: The role is unknown, or the name is empty, too long or was used before.
    """
    if role not in get_args(Role):
        raise InputError(f"a key cannot have the role {role!r}: give one of {', '.join(get_args(Role))}.")
    validate_name("key", name)
    secret = PREFIX + token_urlsafe(RANDOM_BYTES)

    def work(unit: UnitOfWork) -> None:
        existing = unit.session.scalar(select(ApiKey).where(ApiKey.name == name))
        if existing is not None:
            state = "is there already" if existing.revoked_at is None else "was revoked, and its name is kept"
            raise InputError(f"key {name!r} {state}: each key has a name of its own. Give another name.")
        unit.session.add(ApiKey(name=name, digest=key_digest(secret), role=role))

    registry.write_with_retry(work)
    return secret


def revoke_key(registry: Registry, name: str) -> datetime:
    """Revoke a key permanently and at once; its name stays reserved.

    Returns:
        The time of revocation.

    Raises:
        NotFound: There is no such key.
        NothingToDo: It was revoked before.
    """

    def work(unit: UnitOfWork) -> datetime:
        row = get_key(unit.session, name)
        unit.session.refresh(row, with_for_update=True)
        if row.revoked_at is not None:
            raise NothingToDo(f"key {name!r} was revoked at {row.revoked_at.isoformat()}. Nothing was changed.")
        row.revoked_at = moment = now()
        return moment

    return registry.write_with_retry(work)


def key_digest(secret: str) -> str:
    """Return the stored form of a secret: its SHA-256 in hex.

    A slow, salted hash protects passwords, which can be guessed. 256 random bits cannot, so a fast hash suffices; and
    being deterministic, it finds the key by an index.

    >>> key_digest("ck_")[:8]
    '3230a75a'
    """
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()  # defined for any string a client sends
