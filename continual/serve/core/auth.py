"""Authentication by API keys, whose digests and roles the registry holds."""

from collections.abc import Awaitable, Callable

from fastapi import HTTPException
from starlette.requests import Request

from registry import Registry, key_digest

READ, ADMIN = "read", "admin"


class ApiKeyAuth:
    """The keys that are valid now, cached; `refresh` reads them from the registry again.

    Args:
        registry: The registry whose keys are valid.
        open: Let every request pass while the registry has no key; meant for a server that only its own machine can
            reach.
    """

    def __init__(self, registry: Registry, *, open: bool) -> None:
        self._registry, self._open = registry, open
        self._roles: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the valid keys from the registry; if that fails, keep the ones from before.

        Raises:
            RegistryError: The registry cannot be read.
            DatabaseUnavailable: The database cannot be reached.
        """
        self._roles = {digest: role for digest, (_, role) in self._registry.active_keys().items()}

    def require_role(self, role: str) -> Callable[[Request], Awaitable[None]]:
        """Return a FastAPI dependency: status 401 without a valid key, 403 if its role does not suffice."""

        # Asynchronous: FastAPI would run a plain function in its thread pool, only to look up a key.
        async def check(request: Request) -> None:
            if self._open and not self._roles:
                return
            scheme, _, secret = request.headers.get("authorization", "").partition(" ")
            key_role = self._roles.get(key_digest(secret.strip())) if scheme.lower() == "bearer" else None
            if key_role is None:
                raise HTTPException(
                    401,
                    "the request has no good key; send `Authorization: Bearer KEY`, with one of `continual keys add`",
                    {"www-authenticate": "Bearer"},
                )
            if role == ADMIN and key_role != ADMIN:
                raise HTTPException(403, "the key may only read; use one of `continual keys add --admin`")

        return check
