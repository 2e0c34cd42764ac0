"""Authentication by API keys, whose digests and roles the registry holds."""

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from continual.serve.core.error_responses import http_error_response
from registry import Registry, key_digest

READ, ADMIN = "read", "admin"
OPEN_PATHS = ("/", "/docs", "/healthz", "/readyz")  # pages without data, and what a supervisor asks


class ApiKeyAuth:
    """The keys that are valid now, cached; `refresh` reads them from the registry again.

    Args:
        registry: The registry whose keys are valid.
        open: Let every request pass until the registry's first key is added; meant for a server that only its own
            machine can reach. Revoking the last key does not open the server again.
    """

    def __init__(self, registry: Registry, *, open: bool) -> None:
        self._registry, self._may_open = registry, open
        self._open = False
        self._roles: Mapping[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the valid keys from the registry; if that fails, keep the ones from before.

        Raises:
            RegistryError: The registry cannot be read.
            DatabaseUnavailable: The database cannot be reached.
        """
        roles: dict[str, str] = {digest: role for digest, (_, role) in self._registry.active_keys().items()}
        # After the keys: one that is added between the two queries closes the server.
        self._open = self._may_open and not self._registry.has_keys()
        self._roles = roles

    def check(self, request: Request, role: str) -> None:
        """Raise an error unless the request has a valid key of a role.

        Raises:
            HTTPException: Status 401 without a valid key, 403 if its role does not suffice.
        """
        if self._open:
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

    async def require_admin(self, request: Request) -> None:
        """Check a request as a FastAPI dependency: it needs a key of role `admin`."""
        self.check(request, ADMIN)


class ApiKeyMiddleware:
    """Checks the key of every request before its body is read, whatever its path, except for `OPEN_PATHS`.

    Args:
        app: The application behind the middleware.
        auth: The valid keys.
    """

    def __init__(self, app: ASGIApp, *, auth: ApiKeyAuth) -> None:
        self._app, self._auth = app, auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection; only HTTP requests are checked."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                self._auth.check(Request(scope), READ)
            except HTTPException as error:
                await http_error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
