"""Read-only routes on the registry: the command line's listings and reports, as JSON."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request

from continual.learning.similar_tasks import similar_tasks
from continual.reports.report import stream_report
from continual.serve.core.admission import RegistryReader
from continual.serve.core.error_responses import openapi_error_responses
from registry import Registry

Rows = list[dict[str, Any]]
Limit = Annotated[int | None, Query(ge=1, le=10_000, description="Maximum number of rows.")]
After = Annotated[str | None, Query(description="The name in the last row of the previous page.")]


def registry_routes(registry: Registry, reader: RegistryReader) -> APIRouter:
    """Return the routes that read a registry.

    Args:
        registry: The registry.
        reader: Queries it for requests.
    """
    router = APIRouter(
        prefix="/v1", tags=["what was learned"], responses=openapi_error_responses(401, 404, 422, 503, 504)
    )

    @router.get("/tasks")
    async def tasks(request: Request, limit: Limit = None, after: After = None) -> Rows:
        """List the registered tasks."""
        return await reader.read(request, registry.tasks, limit=limit, after=after)

    @router.get("/deltas")
    async def deltas(request: Request, task: str | None = None, limit: Limit = None, after: After = None) -> Rows:
        """List the registered deltas, one row per version."""
        return await reader.read(request, registry.deltas, task, limit=limit, after=after)

    @router.get("/lineage")
    async def lineage(request: Request, delta: str, descendants: bool = False) -> Rows:
        """List the ancestors of a delta, with the kind and weight of each step, or its descendants."""
        return await reader.read(request, registry.lineage, delta, descendants=descendants)

    @router.get("/similar")
    async def similar(request: Request, task: str) -> Rows:
        """List the other tasks by their similarity to a task, by several measures."""
        return await reader.read(request, similar_tasks, registry, task)

    @router.get("/streams")
    async def streams(request: Request) -> Rows:
        """List the streams that were begun."""
        streams = await reader.read(request, registry.streams)
        return [{"stream": stream.name, "created_at": stream.created_at.isoformat()} for stream in streams]

    @router.get("/report")
    async def report(request: Request, stream: str) -> dict[str, Any]:
        """Return the score matrices and measures of a stream."""
        return await reader.read(request, stream_report, registry, stream)

    return router
