"""The page at `/`: tasks, lineage, a box to try a text, and the load, all asked of the operations beside it.

It looks like the pages of reports, holds its style and script, and may load nothing else: the browser is told by a
Content Security Policy (https://www.w3.org/TR/CSP3/) which names both by their digests.
"""

import base64
import hashlib
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

STYLES = ("page/templates/page.css", "serve/web/page.css")
SCRIPTS = tuple(f"serve/web/{part}.js" for part in ("page", "answer", "tasks", "load"))


def render_page() -> tuple[str, dict[str, str]]:
    """The page, and the headers that go with it."""
    style, script = ("\n".join(map(_text, parts)) for parts in (STYLES, SCRIPTS))
    page = _text("serve/web/page.html").replace("/* style */", style).replace("/* script */", script)
    policy = {
        "default-src": "'none'",
        "style-src": _digest(style),
        "script-src": _digest(script),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'self'",
        "require-trusted-types-for": "'script'",  # texts of others cannot become HTML, whatever the script does
        "trusted-types": "'none'",
    }
    return page, {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "x-frame-options": "SAMEORIGIN",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }


def page_routes() -> APIRouter:
    """The page, which needs no key: it holds nothing, and asks for a key where the operations do."""
    router = APIRouter()
    page, headers = render_page()

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers=headers)

    return router


def _text(path: str) -> str:
    return files("continual").joinpath(path).read_text(encoding="utf-8")


def _digest(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
