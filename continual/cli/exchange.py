"""Commands that export deltas to other tools and import them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continual.cli.commands import app, command
from continual.cli.options import BackboneName, BackboneOptions, print_message, print_rows
from tasks.errors import InputError

if TYPE_CHECKING:
    from continual.exchange import ExportedDelta
    from continual.learner import Learner


@command(
    app,
    examples=[
        "continual export billing@1 billing-adapter",
        "continual export billing@1 billing-model --format transformers",
        "continual export --all adapters --format vllm",
    ],
)
def export(
    common: BackboneOptions,
    delta: Annotated[str, typer.Argument(help="A delta, such as sst2@1; with --all, DIR.")],
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="A new folder.")] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="peft: an adapter for PEFT; transformers: a whole model, with the head in it where pipeline answers; "
            "vllm, sglang, lorax: LoRA as this engine loads it.",
        ),
    ] = "peft",
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", min=1, max=4096, help="Largest rank of LoRA for an engine; approximations have at most 64."
        ),
    ] = None,
    champions: Annotated[bool, typer.Option("--all", help="Every delta that serves, one folder each in DIR.")] = False,
    backbone: BackboneName = None,
) -> None:
    """Export a delta as a folder that PEFT, transformers or a serving engine load without this package."""
    if champions:
        if folder is not None:
            raise InputError(f"--all exports every delta that serves; leave out {delta!r}")
        folder = Path(delta)
    elif folder is None:
        raise InputError(f"name a delta and a folder, as in `continual export billing@1 {delta}`; or use --all")
    exact = replace(common, dtype="float32") if common.dtype == "auto" else common  # merged weights must not be rounded
    with exact.learner(backbone or (None if champions else _trained_on(common, delta))) as learner:
        rows = (
            _export_champions(learner, folder, form, rank) if champions else _export(learner, delta, folder, form, rank)
        )
    hidden = {key for key in rows[0] if all(row[key] is None for row in rows)} | {"command"}
    print_rows(common, rows, title="Exported", hidden=hidden)
    for line in dict.fromkeys(row["command"] for row in rows if row["command"]):
        print_message(line)


def _trained_on(common: BackboneOptions, delta: str) -> str:
    with common.registry() as registry:
        return registry.backbone(registry.delta(delta).backbone).name


def _export(learner: "Learner", delta: str, folder: Path, form: str, rank: int | None) -> list[dict[str, Any]]:
    from continual.exchange import export_delta

    exported = export_delta(learner.backbone, learner.registry, delta, folder=folder, file_format=form, rank=rank)
    return _rows(learner, form, [exported], {})


def _export_champions(learner: "Learner", folder: Path, form: str, rank: int | None) -> list[dict[str, Any]]:
    exports = learner.export_champions(folder, form=form, rank=rank)
    return _rows(learner, form, exports.exported, exports.refused)


def _rows(
    learner: "Learner", form: str, exported: "Sequence[ExportedDelta]", refused: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return one row per delta, with the command that serves those of its kind."""
    from continual.exchange import commands_by_delta

    commands = commands_by_delta(learner.backbone, form, exported)
    rows = [_row(export, form) | {"command": commands.get(export.delta)} for export in exported]
    empty = dict.fromkeys(rows[0]) | {"format": form, "files": []}
    return rows + [empty | {"delta": delta, "obstacle": reason} for delta, reason in refused.items()]


def _row(exported: "ExportedDelta", form: str) -> dict[str, Any]:
    adapter = exported.engine_adapter
    change = adapter and adapter.score_change
    return {
        "delta": exported.delta,
        "format": form,
        "folder": str(exported.folder),
        "files": list(exported.files),
        "rank": adapter and adapter.rank,
        "weight_error": adapter and adapter.weight_error,
        "score_before": change and change.before,
        "score_after": change and change.after,
        "obstacle": None,
    }


@command(app, name="import", examples=["continual import billing-adapter --task billing --rows billing.yaml"])
def import_folder(
    common: BackboneOptions,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that PEFT or `export` wrote.")],
    task: Annotated[str, typer.Option("--task", help="The task that gets the delta as its next version.")],
    rows: Annotated[
        Path | None, typer.Option("--rows", help="The task's file: score the delta on its rows; else it has no score.")
    ] = None,
    backbone: BackboneName = None,
) -> None:
    """Register an adapter that PEFT saved as a new version of a task's delta."""
    from tasks import read_task

    with common.learner(backbone, create=True) as learner:
        name = learner.import_peft(folder, task, rows=read_task(rows) if rows else None)
        stored = learner.registry.delta(name)
        print_rows(common, [row for row in learner.registry.deltas(task) if row["delta"] == name], title="Imported")
    reason = f", a {stored.status}: {stored.reason}" if stored.reason else ", and serves"
    print_message(f"{name} is registered{reason}")
