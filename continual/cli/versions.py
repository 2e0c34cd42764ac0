"""Commands that decide by hand which version of a task serves, and what is kept."""

import re
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from continual.cli.listings import deltas, tasks
from continual.cli.options import CommonOptions, app, command, print_rows
from registry import Registry, archive_delta, collect_garbage, delete_task, promote_delta, purge_task
from tasks.errors import InputError

DeltaName = Annotated[str, typer.Argument(help="A delta, such as sst2@1.")]
Learned = Annotated[str, typer.Argument(help="A learned task.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why; it is kept in the history.")]
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@command(deltas)
def promote(common: CommonOptions, delta: DeltaName, reason: Reason = None) -> None:
    """Let a version serve its task, whatever its scores; the one that served is archived."""
    with common.writable_registry() as registry:
        promote_delta(registry, delta, reason=reason)
        _show(common, registry, delta, title="Serves from now on")


@command(deltas)
def archive(common: CommonOptions, delta: DeltaName, reason: Reason = None) -> None:
    """Take a version out of service; a task whose champion is archived is served by none."""
    with common.writable_registry() as registry:
        archive_delta(registry, delta, reason=reason)
        _show(common, registry, delta, title="Archived")


@command(tasks)
def delete(common: CommonOptions, task: Learned, reason: Reason = None) -> None:
    """Delete a task and its deltas, unless deltas of other tasks came from one that is not archived."""
    with common.writable_registry() as registry:
        removed = delete_task(registry, task, reason=reason)
    print_rows(common, [{"task": task, **removed}], title="Deleted")


@command(app)
def purge(
    common: CommonOptions,
    task: Learned,
    yes: Annotated[bool, typer.Option("--yes", help="It cannot be undone: say that this is meant.")] = False,
    reason: Reason = None,
) -> None:
    """Remove all that was learned of a task and what it was learned from, for good; only names are left."""
    with common.writable_registry() as registry:
        if not yes:
            versions = ", ".join(row["delta"] for row in registry.deltas(task)) or "no delta"
            raise InputError(
                f"purging {task!r} removes for good what was learned of it ({versions}): values, scores, signatures, "
                "labels, and its runs in MLflow. Give --yes if that is meant"
            )
        removed = purge_task(registry, task, reason=reason)
    print_rows(common, [{"task": task, **removed}], title="Purged")


@command(app)
def gc(
    common: CommonOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
    older_than: Annotated[str, typer.Option(help="Spare what was put since: a number and s, m, h or d.")] = "1h",
) -> None:
    """Delete blobs that nothing names any more: of runs that were stopped, of tasks that were deleted."""
    age = _duration(older_than)
    with common.registry() as registry:
        found = collect_garbage(registry, older_than=age, dry_run=dry_run)
    rows = [asdict(blob) | {"put_at": blob.put_at.isoformat(), "deleted": not dry_run} for blob in found]
    size = sum(blob.bytes for blob in found)
    print_rows(common, rows, title=f"{'Would be deleted' if dry_run else 'Deleted'}, {size:,} bytes")


def _show(common: CommonOptions, registry: Registry, delta: str, *, title: str) -> None:
    rows = registry.deltas(registry.delta(delta).task)
    print_rows(common, [row for row in rows if row["delta"] == delta], title=title)


def _duration(text: str) -> timedelta:
    """A length of time as people write it.

    >>> _duration("90m")
    datetime.timedelta(seconds=5400)

    Raises InputError for any other text.
    """
    if not (found := re.fullmatch(r"(\d{1,6})([smhd])", text)):
        raise InputError(f"--older-than {text!r} is no length of time; give a number and s, m, h or d, such as 90m")
    return timedelta(**{UNITS[found[2]]: int(found[1])})
