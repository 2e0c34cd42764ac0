"""Who may ask: keys, of which the registry holds hashes, for reading or for all."""

from collections.abc import Awaitable, Callable

from fastapi import HTTPException
from starlette.requests import Request

from registry import Registry, key_digest

READ, ADMIN = "read", "admin"


class ApiKeyAuth:
    """The keys that are good at this moment; by `refresh`, those of the registry.

    open: whether everybody may ask as long as there is no key: of a server that only its own machine can reach.
    """

    def __init__(self, registry: Registry, *, open: bool) -> None:
        self._registry, self._open = registry, open
        self._roles: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look at the registry again. Raises RegistryError or DatabaseUnavailable; then all stays as it was."""
        self._roles = {digest: role for digest, (_, role) in self._registry.active_keys().items()}

    def require_role(self, role: str) -> Callable[[Request], Awaitable[None]]:
        """What refuses a request without a key for this role: 401 without a good one, 403 for one of another role."""

        async def check(request: Request) -> None:  # else each request would wait for a thread, only to look a key up
            if self._open and not self._roles:
                return
            scheme, _, secret = request.headers.get("authorization", "").partition(" ")
            found = self._roles.get(key_digest(secret.strip())) if scheme.lower() == "bearer" else None
            if found is None:
                raise HTTPException(
                    401,
                    "the request has no good key; send `Authorization: Bearer KEY`, with one of `continual keys add`",
                    {"www-authenticate": "Bearer"},
                )
            if role == ADMIN and found != ADMIN:
                raise HTTPException(403, "the key may only read; use one of `continual keys add --admin`")

        return check
