"""The reference of the operations at `/docs`: the OpenAPI document as a page without scripts."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from fastapi import APIRouter
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from continual.serve.api.page import page_headers, page_style

Schema = Mapping[str, Any]
_SAMPLES: Mapping[str, Any] = {"string": "a text", "integer": 1, "number": 0.5, "boolean": True, "object": {}}


def docs_routes(openapi: Callable[[], dict[str, Any]]) -> APIRouter:
    """Return the route of the page.

    It needs no API key: the page describes the operations, which are the same on every server, and holds no data.

    Args:
        openapi: Returns the application's OpenAPI document, once all routes are in it.
    """
    router, style = APIRouter(), page_style()
    headers = page_headers(style)

    @cache
    def page() -> str:
        return render_docs(openapi(), style=style)

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page(), headers=headers)

    return router


def render_docs(document: Schema, *, style: str) -> str:
    """Return the page's HTML.

    Args:
        document: The OpenAPI document.
        style: The style sheet.
    """
    schemas = document["components"]["schemas"]
    sections = defaultdict(list)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            entry = _operation(method.upper(), path, operation, schemas)
            sections[operation["tags"][0]].append(entry)
    environment = Environment(
        loader=PackageLoader("continual.serve", "web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["compact"] = _compact
    fields = {name: {"description": "", "properties": {}, "required": (), **schema} for name, schema in schemas.items()}
    return environment.get_template("docs.html").render(sections=sections, schemas=fields, style=style)


def _operation(method: str, path: str, operation: Schema, schemas: Schema) -> dict[str, Any]:
    body = operation["requestBody"]["content"]["application/json"]["schema"] if "requestBody" in operation else None
    parameters = [{"description": "", **parameter} for parameter in operation.get("parameters", ())]
    query = "&".join(f"{p['name']}={p['name'].upper()}" for p in parameters if p["in"] == "query" and p["required"])
    lines = [f"curl -s 'http://localhost:8000{path}{'?' if query else ''}{query}'"]
    if method != "GET":
        lines.append(f"-X {method}")
    if body:
        lines += ["-H 'content-type: application/json'", f"-d '{json.dumps(_sample(body, schemas))}'"]
    return {
        "id": operation["operationId"],
        "method": method,
        "path": path,
        "description": operation["description"],
        "parameters": parameters,
        "body": body["$ref"].rpartition("/")[2] if body else None,
        "responses": operation["responses"],
        "example": " \\\n  ".join(lines),
    }


def _sample(schema: Schema, schemas: Schema) -> Any:
    """Return the least value of a schema."""
    if "$ref" in schema:
        return _sample(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return _sample(alternatives[0], schemas)
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if schema.get("type") == "array":
        return [_sample(schema["items"], schemas)]
    if required := schema.get("required"):
        return {name: _sample(schema["properties"][name], schemas) for name in required}
    return _SAMPLES.get(schema.get("type", "object"))


def _compact(schema: Schema) -> str:
    """Return a schema as JSON without titles and descriptions, and with names in place of references."""
    return json.dumps(_without_notes(schema), ensure_ascii=False).replace('"#/components/schemas/', '"')


def _without_notes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_notes(item) for key, item in value.items() if key not in ("title", "description")}
    return [_without_notes(item) for item in value] if isinstance(value, list) else value
