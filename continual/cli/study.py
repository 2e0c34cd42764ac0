"""`continual study`: the field's studies on one's own tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from continual.cli.options import (
    BackboneName,
    CommonOptions,
    Html,
    app,
    command,
    err,
    out,
    print_json,
    print_message,
    print_rows,
)
from continual.errors import StudyError
from continual.escaping import escape_control_characters
from tasks import Stream, load_stream, read_stream
from tasks.errors import InputError

if TYPE_CHECKING:
    from continual.experiments.studies import Result, Study, StudyRun
    from continual.experiments.studies.study import ProgressCallback
    from continual.experiments.studies.trial import StudyTrial

MOST_ROWS = 60  # of a table, that a terminal shows
LARGEST_SEED = 2**32 - 1


@command(app)
def study(
    common: CommonOptions,
    name: Annotated[str | None, typer.Argument(help="A study; without one, they are listed.")] = None,
    stream: Annotated[Path | None, typer.Argument(help="A stream file.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Names of tasks, by commas; without it, all of the stream.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, by commas: every trial is made with each.")] = "0",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the study, as in --set shots=8; the value is YAML.")
    ] = None,
    html: Html = None,
    backbone: BackboneName = None,
) -> None:
    """Repeat a study of the field on the tasks of a stream; what was measured before is not measured again."""
    from continual.experiments.studies import STUDIES, TrialRunner, TrialStore, run_study, study_of

    if name is None:
        rows = [{"study": own, "shows": kind.shows, "from": kind.paper} for own, kind in STUDIES.items()]
        print_rows(common, rows, title="Studies: continual study NAME STREAM.yaml")
        return
    chosen = study_of(name, dict(_setting(word) for word in settings or ()))
    if stream is None:
        raise StudyError(f"study {name!r} needs a stream file; settings: {', '.join(type(chosen).model_fields)}")
    numbers, known = _seeds(seeds), _only(read_stream(stream), tasks)
    if html is not None:
        from continual.reports.html import check_writable

        check_writable(html)
    with common.learner(backbone or known.backbone) as learner:
        bench = TrialRunner(learner.backbone, load_stream(known), numbers)
        ledger = TrialStore.open(common.locations.home, name, learner.backbone)
        with _progress(name) as made:
            studied = run_study(chosen, bench, ledger, made=made)
        about = _about(name, known, chosen, bench)
        _show(common, about, studied)
        if html is not None:
            _write_page(html, about, studied.result)
        from continual.tracking import log_study

        log_study(learner.registry, common.locations, about, studied.result)


def _about(name: str, stream: Stream, chosen: "Study", bench: Any) -> dict[str, Any]:
    return {
        "study": name,
        "stream": stream.name,
        "backbone": bench.backbone.name,
        "tasks": [task.name for task in stream.tasks],
        "seeds": list(bench.seeds),
        "settings": chosen.model_dump(mode="json"),
    }


def _show(common: CommonOptions, about: dict[str, Any], studied: "StudyRun") -> None:
    trials = [{**one.trial.to_json(), "outcome": one.outcome} for one in studied.results]
    for one in studied.results:
        if one.failed:
            print_message(f"{_called(one.trial)} failed and is left out: {one.outcome['failed']}", style="red")
    if common.json:
        print_json(
            {**about, "tables": studied.result.to_json, "metrics": dict(studied.result.metrics), "trials": trials}
        )
        return
    from continual.cli.tables import table_of

    for section in studied.result.sections:
        if section.table:
            out.print(escape_control_characters(section.title), style="bold", markup=False)
            if section.text:
                out.print(escape_control_characters(section.text), style="dim", markup=False)
            if len(section.table.rows) > MOST_ROWS:
                out.print(f"{len(section.table.rows)} rows, which --json and --html show\n")
            else:
                out.print(table_of(section.table.columns, section.table.texts, numeric=section.table.numeric))


def _write_page(file: Path, about: dict[str, Any], result: "Result") -> None:
    from continual.experiments.studies import STUDIES
    from continual.reports.html import page, write_page

    kind = STUDIES[about["study"]]
    summary = (
        f"{kind.shows} (after {kind.paper}). Backbone {about['backbone']}, tasks {', '.join(about['tasks'])}, "
        f"seeds {', '.join(map(str, about['seeds']))}."
    )
    title, summary = f"{about['study']}: {about['stream']}", summary[0].upper() + summary[1:]
    write_page(file, page(title, result.sections, summary=summary))
    print_message(f"{file} is written")


@contextmanager
def _progress(name: str) -> Iterator["ProgressCallback"]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bars:
        bar = bars.add_task(name, total=None)
        yield lambda done, total, trial: bars.update(
            bar, completed=done, total=total, description=escape_control_characters(_called(trial))
        )
        bars.update(bar, completed=bars.tasks[bar].total or 0, description=name)


def _called(trial: "StudyTrial") -> str:
    from continual.experiments.studies.aggregation import method_label

    source = f" from {trial.source.task}" if trial.source else ""
    return f"{trial.task}{source}, {method_label(trial.candidate.method)}, seed {trial.seed}"


def _setting(word: str) -> tuple[str, Any]:
    name, sign, value = word.partition("=")
    try:
        if sign and name:
            return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise StudyError(f"--set {word!r}: the value is no YAML ({error}); write --set NAME=VALUE") from error
    raise StudyError(f"--set {word!r} is no setting; write --set NAME=VALUE, as in --set 'methods=[lora, bitfit]'")


def _seeds(words: str) -> tuple[int, ...]:
    found = [word.strip() for word in words.split(",")]
    if not all(word.isdecimal() and int(word) <= LARGEST_SEED for word in found):
        raise StudyError(f"--seeds {words!r} are no seeds; write whole numbers from 0 to {LARGEST_SEED}, as in 0,1,2")
    return tuple(dict.fromkeys(map(int, found)))


def _only(stream: Stream, names: str | None) -> Stream:
    """The stream with the named tasks alone, in the order of the stream."""
    if names is None:
        return stream
    wanted, there = {name.strip() for name in names.split(",")}, [task.name for task in stream.tasks]
    if unknown := sorted(wanted - set(there)):
        raise InputError(f"--tasks: {', '.join(map(repr, unknown))} are not in the stream; it has {', '.join(there)}")
    return stream.model_copy(update={"tasks": tuple(task for task in stream.tasks if task.name in wanted)})
