"""Commands that promote, archive and remove versions by hand."""

import re
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from continual.cli.commands import app, command
from continual.cli.listings import deltas, tasks
from continual.cli.options import CommonOptions, print_rows
from tasks.errors import InputError

if TYPE_CHECKING:
    from registry import Registry

DeltaName = Annotated[str, typer.Argument(help="A delta, such as sst2@1.")]
LearnedTask = Annotated[str, typer.Argument(help="A learned task.")]
Confirmed = Annotated[bool, typer.Option("--yes", help="Confirm the removal, which cannot be undone.")]
Reason = Annotated[str | None, typer.Option("--reason", help="The reason, which is recorded in the history.")]
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@command(deltas, examples=['continual deltas promote billing@1 --reason "the new rows were wrong"'])
def promote(common: CommonOptions, delta: DeltaName, reason: Reason = None) -> None:
    """Make a version its task's champion, regardless of scores; the champion before it is archived."""
    from registry import promote_delta

    with common.writable_registry() as registry:
        promote_delta(registry, delta, reason=reason)
        _print_delta(common, registry, delta, title="Serves from now on")


@command(deltas, examples=["continual deltas archive billing@1"])
def archive(common: CommonOptions, delta: DeltaName, reason: Reason = None) -> None:
    """Archive a version; a task whose champion is archived has none and is not served."""
    from registry import archive_delta

    with common.writable_registry() as registry:
        archive_delta(registry, delta, reason=reason)
        _print_delta(common, registry, delta, title="Archived")


@command(tasks, examples=["continual tasks delete billing --yes"])
def delete(common: CommonOptions, task: LearnedTask, yes: Confirmed = False, reason: Reason = None) -> None:
    """Delete a task and its deltas, unless one that is not archived is a parent of another task's delta."""
    from registry import delete_task

    with common.writable_registry() as registry:
        _require_confirmation(registry, task, "deleting", confirmed=yes)
        removed = delete_task(registry, task, reason=reason)
    print_rows(common, [{"task": task, **removed}], title="Deleted")


@command(app, examples=['continual purge billing --yes --reason "erasure request"'])
def purge(common: CommonOptions, task: LearnedTask, yes: Confirmed = False, reason: Reason = None) -> None:
    """Remove for good everything learned of a task and the records of its data; only names remain."""
    from registry import purge_task

    with common.writable_registry() as registry:
        _require_confirmation(registry, task, "purging", confirmed=yes)
        removed = purge_task(registry, task, reason=reason)
    print_rows(common, [{"task": task, **removed}], title="Purged")


@command(app, examples=["continual gc --dry-run", "continual gc --older-than 7d"])
def gc(
    common: CommonOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the blobs that would be deleted.")] = False,
    older_than: Annotated[
        str, typer.Option(help="Least age of a blob to be deleted: a number and s, m, h or d, such as 90m.")
    ] = "1h",
) -> None:
    """Delete blobs that nothing in the registry refers to: of interrupted runs and of deleted tasks."""
    from registry import collect_garbage

    age = _parse_duration(older_than)
    with common.registry() as registry:
        blobs = collect_garbage(registry, older_than=age, dry_run=dry_run)
    rows = [asdict(blob) | {"put_at": blob.put_at.isoformat(), "deleted": not dry_run} for blob in blobs]
    size = sum(blob.bytes for blob in blobs)
    print_rows(common, rows, title=f"{'Would be deleted' if dry_run else 'Deleted'}, {size:,} bytes")


def _require_confirmation(registry: "Registry", task: str, removal: str, *, confirmed: bool) -> None:
    """Raise an error that says what a removal takes away, unless it is confirmed.

    Raises:
        InputError: It is not confirmed.
        NotFound: The task is not registered.
    """
    if not confirmed:
        versions = ", ".join(row["delta"] for row in registry.deltas(task)) or "no delta"
        raise InputError(
            f"{removal} {task!r} removes for good what was learned of it ({versions}): values, scores, signatures, "
            "labels, and its runs in MLflow. Give --yes if that is meant"
        )


def _print_delta(common: CommonOptions, registry: "Registry", delta: str, *, title: str) -> None:
    rows = registry.deltas(registry.delta(delta).task)
    print_rows(common, [row for row in rows if row["delta"] == delta], title=title)


def _parse_duration(text: str) -> timedelta:
    """Parse a number and a unit (s, m, h or d).

    >>> _parse_duration("90m")
    datetime.timedelta(seconds=5400)

    Raises:
        InputError: The text is something else.
    """
    if not (match := re.fullmatch(r"(\d{1,6})([smhd])", text)):
        raise InputError(f"--older-than {text!r} is no length of time; give a number and s, m, h or d, such as 90m")
    return timedelta(**{UNITS[match[2]]: int(match[1])})
