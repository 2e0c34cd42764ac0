"""API keys come and go: a secret is made here, told once, and known by its digest from then on."""

from datetime import datetime
from hashlib import sha256
from secrets import token_urlsafe
from typing import get_args

from sqlalchemy import select

from registry.errors import NothingToDo
from registry.names import validate_name
from registry.reads.api_keys import ApiKey, Role, get_key
from registry.registry import Registry
from registry.schema.base import now
from registry.unit_of_work import UnitOfWork
from tasks.errors import InputError

PREFIX = "ck_"  # by which scanners for leaked secrets can tell what they found
RANDOM_BYTES = 32


def add_key(registry: Registry, name: str, *, role: Role) -> str:
    """Registers a key and returns its secret, which nobody can look up afterwards.

    Raises: InputError for a role that is none, and for a name that is empty, too long, or was given to a key before.
    """
    if role not in get_args(Role):
        raise InputError(f"a key cannot have the role {role!r}: give one of {', '.join(get_args(Role))}.")
    validate_name("key", name)
    secret = PREFIX + token_urlsafe(RANDOM_BYTES)

    def work(unit: UnitOfWork) -> None:
        known = unit.session.scalar(select(ApiKey).where(ApiKey.name == name))
        if known is not None:
            state = "is there already" if known.revoked_at is None else "was revoked, and its name is kept"
            raise InputError(f"key {name!r} {state}: each key has a name of its own. Give another name.")
        unit.session.add(ApiKey(name=name, digest=key_digest(secret), role=role))

    registry.write_with_retry(work)
    return secret


def revoke_key(registry: Registry, name: str) -> datetime:
    """Takes a key's rights away for good, from the moment that it returns; its name is kept.

    Raises: NotFound for an unknown name; NothingToDo, where it was revoked before.
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
    """What is kept of a secret: its SHA-256, in hex.

    A slow, salted hash protects passwords, which can be guessed. 256 random bits cannot, so a fast one does; and being
    the same for the same secret, it finds the key without a look at every other.

    >>> key_digest("ck_")[:8]
    '3230a75a'
    """
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()  # whatever a client sends has one
