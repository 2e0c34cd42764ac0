"""What was learned, to be read: tasks, deltas, lineage and reports as the command line lists them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from continual.learning.similar_tasks import similar_tasks
from continual.reports.report import stream_report as document_of
from continual.serve.core.error_responses import openapi_error_responses
from registry import Registry

Rows = list[dict[str, Any]]
Limit = Annotated[int | None, Query(ge=1, le=10_000, description="At most so many rows.")]
After = Annotated[str | None, Query(description="The name in the last row of the page before.")]


def registry_routes(registry: Registry) -> APIRouter:
    """The operations, on this registry."""
    router = APIRouter(prefix="/v1", tags=["what was learned"], responses=openapi_error_responses(401, 404, 422, 503))

    @router.get("/tasks")
    def tasks(limit: Limit = None, after: After = None) -> Rows:
        """List the tasks that are registered."""
        return registry.tasks(limit=limit, after=after)

    @router.get("/deltas")
    def deltas(task: str | None = None, limit: Limit = None, after: After = None) -> Rows:
        """List the deltas that are registered, a row for each version."""
        return registry.deltas(task, limit=limit, after=after)

    @router.get("/lineage")
    def lineage(delta: str, descendants: bool = False) -> Rows:
        """List the deltas that a delta came from, how, and with what weight; or those that came from it."""
        return registry.lineage(delta, descendants=descendants)

    @router.get("/similar")
    def similar(task: str) -> Rows:
        """List the other tasks by how alike they are, by several measures."""
        return similar_tasks(registry, task)

    @router.get("/streams")
    def streams() -> Rows:
        """List the streams that were begun."""
        return [{"stream": own.name, "created_at": own.created_at.isoformat()} for own in registry.streams()]

    @router.get("/report")
    def report(stream: str) -> dict[str, Any]:
        """Score matrices and measures of a stream."""
        return document_of(registry, stream)

    return router
