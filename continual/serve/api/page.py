"""The web page at `/`: tasks, lineage, a form to try a text, and the load.

It reads all of them from the other routes. It shares the style of the HTML reports, contains its style and script
inline, and may load nothing else: its Content Security Policy (https://www.w3.org/TR/CSP3/) allows the two by their
digests.
"""

import base64
import hashlib
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

STYLES = ("reports/html/templates/page.css", "serve/web/page.css")
SCRIPTS = tuple(f"serve/web/{part}.js" for part in ("page", "answer", "tasks", "load"))


def page_style() -> str:
    """Return the style sheet of all pages of the server."""
    return "\n".join(map(_read_text, STYLES))


def page_headers(style: str, script: str = "") -> dict[str, str]:
    """Return the headers of a page that holds this style and script inline, and may load nothing else."""
    policy = {
        "default-src": "'none'",
        "style-src": _csp_digest(style),
        "script-src": _csp_digest(script) if script else "'none'",
        "connect-src": "'self'" if script else "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'self'",
        "require-trusted-types-for": "'script'",  # the browser refuses to parse any string as HTML
        "trusted-types": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "x-frame-options": "SAMEORIGIN",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }


def render_page() -> tuple[str, dict[str, str]]:
    """Return the page's HTML and its response headers."""
    style, script = page_style(), "\n".join(map(_read_text, SCRIPTS))
    page = _read_text("serve/web/page.html").replace("/* style */", style).replace("/* script */", script)
    return page, page_headers(style, script)


def page_routes() -> APIRouter:
    """Return the route of the page.

    It needs no API key: the page holds no data, and sends a key with its own requests if one is required.
    """
    router = APIRouter()
    page, headers = render_page()

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers=headers)

    return router


def _read_text(path: str) -> str:
    return files("continual").joinpath(path).read_text(encoding="utf-8")


def _csp_digest(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
