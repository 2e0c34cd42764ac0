"""Read-only routes on the registry: the command line's listings and reports, as JSON."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from continual.learning.similar_tasks import similar_tasks
from continual.reports.report import stream_report
from continual.serve.core.error_responses import openapi_error_responses
from registry import Registry

Rows = list[dict[str, Any]]
Limit = Annotated[int | None, Query(ge=1, le=10_000, description="Maximum number of rows.")]
After = Annotated[str | None, Query(description="The name in the last row of the previous page.")]


def registry_routes(registry: Registry) -> APIRouter:
    """Return the routes that read a registry."""
    router = APIRouter(prefix="/v1", tags=["what was learned"], responses=openapi_error_responses(401, 404, 422, 503))

    @router.get("/tasks")
    def tasks(limit: Limit = None, after: After = None) -> Rows:
        """List the registered tasks."""
        return registry.tasks(limit=limit, after=after)

    @router.get("/deltas")
    def deltas(task: str | None = None, limit: Limit = None, after: After = None) -> Rows:
        """List the registered deltas, one row per version."""
        return registry.deltas(task, limit=limit, after=after)

    @router.get("/lineage")
    def lineage(delta: str, descendants: bool = False) -> Rows:
        """List the ancestors of a delta, with the kind and weight of each step, or its descendants."""
        return registry.lineage(delta, descendants=descendants)

    @router.get("/similar")
    def similar(task: str) -> Rows:
        """List the other tasks by their similarity to a task, by several measures."""
        return similar_tasks(registry, task)

    @router.get("/streams")
    def streams() -> Rows:
        """List the streams that were begun."""
        return [{"stream": stream.name, "created_at": stream.created_at.isoformat()} for stream in registry.streams()]

    @router.get("/report")
    def report(stream: str) -> dict[str, Any]:
        """Return the score matrices and measures of a stream."""
        return stream_report(registry, stream)

    return router
