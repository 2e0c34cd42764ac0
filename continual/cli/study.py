"""`continual study`: repeat published studies on one's own tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continual.cli.commands import app, command
from continual.cli.options import (
    BackboneName,
    BackboneOptions,
    CommonOptions,
    Html,
    err,
    out,
    print_json,
    print_message,
    print_rows,
)
from continual.errors import StudyError
from continual.escaping import escape_control_characters
from tasks.errors import InputError

if TYPE_CHECKING:
    from continual.experiments.studies import Result, Study, StudyRun
    from continual.experiments.studies.study import ProgressCallback
    from continual.experiments.studies.trial import StudyTrial
    from tasks import Stream

MAX_TABLE_ROWS = 60  # longer tables are not printed in the terminal
MAX_SEED = 2**32 - 1


@command(
    app,
    examples=["continual study", "continual study convergence stream.yaml --seeds 0,1,2 --html study.html"],
    remaining="trials that were run are kept",
)
def study(
    common: BackboneOptions,
    name: Annotated[str | None, typer.Argument(help="The name of a study; without it, all are listed.")] = None,
    stream: Annotated[Path | None, typer.Argument(help="A stream file.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Names of tasks, by commas; by default all of the stream.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, by commas; every trial is run with each.")] = "0",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the study, as in --set shots=8; the value is YAML.")
    ] = None,
    html: Html = None,
    backbone: BackboneName = None,
) -> None:
    """Repeat a published study on the tasks of a stream; trials that were run before are not run again."""
    from continual.experiments.studies import STUDIES, TrialRunner, TrialStore, run_study, study_of
    from tasks import load_stream, read_stream

    if name is None:
        rows = [{"study": key, "shows": kind.shows, "from": kind.paper} for key, kind in STUDIES.items()]
        print_rows(common, rows, title="Studies: continual study NAME STREAM.yaml")
        return
    configured = study_of(name, dict(_parse_setting(setting) for setting in settings or ()))
    if stream is None:
        raise StudyError(f"study {name!r} needs a stream file; settings: {', '.join(type(configured).model_fields)}")
    seed_numbers, selected = _parse_seeds(seeds), _select_tasks(read_stream(stream), tasks)
    if html is not None:
        from continual.reports.html import check_writable

        check_writable(html)
    with common.learner(backbone or selected.backbone, create=True) as learner:
        runner = TrialRunner(learner.backbone, load_stream(selected), seed_numbers)
        store = TrialStore.open(common.locations.home, name, learner.backbone)
        with _progress(name) as on_progress:
            study_run = run_study(configured, runner, store, progress=on_progress)
        summary = _summary(name, selected, configured, runner)
        _print_study(common, summary, study_run)
        if html is not None:
            _write_page(html, summary, study_run.result)
        from continual.tracking import log_study

        log_study(learner.registry, common.locations, summary, study_run.result)


def _summary(name: str, stream: "Stream", configured: "Study", runner: Any) -> dict[str, Any]:
    return {
        "study": name,
        "stream": stream.name,
        "backbone": runner.backbone.name,
        "tasks": [task.name for task in stream.tasks],
        "seeds": list(runner.seeds),
        "settings": configured.model_dump(mode="json"),
    }


def _print_study(common: CommonOptions, summary: dict[str, Any], study_run: "StudyRun") -> None:
    trials = [{**outcome.trial.to_json(), "outcome": outcome.outcome} for outcome in study_run.results]
    for outcome in study_run.results:
        if outcome.failed:
            message = f"{_describe(outcome.trial)} failed and is left out: {outcome.outcome['failed']}"
            print_message(message, style="red")
    if common.json:
        print_json(
            {**summary, "tables": study_run.result.to_json, "metrics": dict(study_run.result.metrics), "trials": trials}
        )
        return
    from continual.cli.table_layout import TextTable, print_table, print_text

    for section in study_run.result.sections:
        if section.table:
            print_text(out, section.title, style="bold")
            if section.text:
                print_text(out, section.text, style="dim")
            if len(section.table.rows) > MAX_TABLE_ROWS:
                out.print(f"{len(section.table.rows)} rows, which --json and --html show\n")
            else:
                print_table(out, TextTable(section.table.columns, section.table.texts, section.table.numeric))


def _write_page(file: Path, summary: dict[str, Any], result: "Result") -> None:
    from continual.experiments.studies import STUDIES
    from continual.reports.html import page, write_page

    kind = STUDIES[summary["study"]]
    text = (
        f"{kind.shows} (after {kind.paper}). Backbone {summary['backbone']}, tasks {', '.join(summary['tasks'])}, "
        f"seeds {', '.join(map(str, summary['seeds']))}."
    )
    title, text = f"{summary['study']}: {summary['stream']}", text[0].upper() + text[1:]
    write_page(file, page(title, result.sections, summary=text))
    print_message(f"{file} is written")


@contextmanager
def _progress(name: str) -> Iterator["ProgressCallback"]:
    from rich.progress import MofNCompleteColumn, TextColumn

    from continual.cli.progress import flexible_bar, timed_progress

    columns = (TextColumn("{task.description}", markup=False), flexible_bar(), MofNCompleteColumn())
    with timed_progress(err, *columns) as bars:
        bar = bars.add_task(name, total=None)
        yield lambda done, total, trial: bars.update(
            bar, completed=done, total=total, description=escape_control_characters(_describe(trial))
        )
        bars.update(bar, completed=bars.tasks[bar].total or 0, description=name)


def _describe(trial: "StudyTrial") -> str:
    from continual.experiments.studies.aggregation import method_label

    source = f" from {trial.source.task}" if trial.source else ""
    backbone = f", {trial.backbone.name}" if trial.backbone else ""
    return f"{trial.task}{source}, {method_label(trial.candidate.method)}{backbone}, seed {trial.seed}"


def _parse_setting(text: str) -> tuple[str, Any]:
    import yaml

    from tasks.yaml_document import load_yaml

    name, sign, value = text.partition("=")
    try:
        if sign and name:
            return name.strip(), load_yaml(value)[1]
    except (yaml.YAMLError, ValueError) as error:
        raise StudyError(f"--set {text!r}: the value is no YAML ({error}); write --set NAME=VALUE") from error
    raise StudyError(f"--set {text!r} is no setting; write --set NAME=VALUE, as in --set 'methods=[lora, bitfit]'")


def _parse_seeds(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) <= MAX_SEED for word in words):
        raise StudyError(f"--seeds {text!r} are no seeds; write whole numbers from 0 to {MAX_SEED}, as in 0,1,2")
    return tuple(dict.fromkeys(map(int, words)))


def _select_tasks(stream: "Stream", names: str | None) -> "Stream":
    """Return the stream with only the named tasks, in the order of the stream."""
    if names is None:
        return stream
    selected, available = {name.strip() for name in names.split(",")}, [task.name for task in stream.tasks]
    if unknown := sorted(selected - set(available)):
        raise InputError(
            f"--tasks: {', '.join(map(repr, unknown))} are not in the stream; it has {', '.join(available)}"
        )
    return stream.model_copy(update={"tasks": tuple(task for task in stream.tasks if task.name in selected)})
