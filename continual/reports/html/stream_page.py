"""Render the document of `continual report --json` as a page, with learning curves and lineage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from continual.reports.html.class_sections import class_sections
from continual.reports.html.curves import learning_curve_panels
from continual.reports.html.document import Section, Table, format_cell, page, render
from continual.reports.html.heatmap import ColorScale, heatmap_table, shared_color_scale
from continual.reports.html.lineage import lineage_graph
from continual.reports.plots import confusion_shares
from continual.reports.report import MEASURES, Document, below_baseline, kept_start, serving_note, transfer_gain
from continual.reports.stream_measures import mean
from registry import Registry

MEGA, PERCENT = 1e6, 100.0


@dataclass(frozen=True)
class _Fact:
    name: str
    value: str
    note: str = ""


def stream_page(registry: Registry, document: Document) -> str:
    """Return the HTML page of a stream, from its report and from curves and lineage in the registry."""
    sections = [
        _overview(document),
        *_unfinished(document),
        *_data_warnings(document),
        *_kept_starts(document),
        *_below_baselines(document),
        *_scores(document),
        *class_sections(document["per_task"]),
        *_routing(document),
        *_curves(registry, document),
        *_lineage(registry, document),
        *_costs(document),
    ]
    tasks, backbone = len(document["tasks"]), document["backbone"]
    summary = f"{tasks} task{'' if tasks == 1 else 's'}, a small delta each, on the frozen backbone {backbone}."
    return page(f"Stream {document['stream']}", sections, summary=summary)


def _overview(document: Document) -> Section:
    oracle, routed, tasks = document["oracle"], document["routed"], document["per_task"]
    parameters, share = mean(task["parameters"] for task in tasks), mean(task["share"] for task in tasks)
    planned = len(tasks) + len(document["unfinished"])
    facts = [
        _Fact("ACC, task known", format_cell(oracle["acc"]), "mean score at the end"),
        _Fact("ACC, task routed", format_cell(routed["acc"]), "the router chooses the task"),
        _Fact(
            "Forgetting, routed", format_cell(routed["forgetting"]), f"task known: {format_cell(oracle['forgetting'])}"
        ),
        _Fact(
            "Routing accuracy",
            format_cell(routed["routing_accuracy"]),
            f"share refused: {format_cell(routed['abstained'])}",
        ),
        _Fact("Tasks learned", str(len(tasks)), f"of {planned}"),
        _Fact("Parameters per task", format_cell(parameters, ",.0f"), f"{format_cell(share, '.2%')} of the backbone"),
    ]
    mean_gain = mean(gain for task in tasks if (gain := transfer_gain(task)) is not None)
    measures = tuple((label, oracle.get(key), routed.get(key)) for key, label in MEASURES.items())
    table = Table(("measure", "oracle", "routed"), (*measures, ("mean transfer gain over scratch", mean_gain, None)))
    text = "Oracle: the task of each input is known. Routed: the router chooses it."
    return Section("In short", text, html=render("facts.html", facts=facts), table=table, caption="Measures")


def _unfinished(document: Document) -> Iterator[Section]:
    rows = tuple((task["task"], task["state"], task["error"]) for task in document["unfinished"])
    if rows:
        yield Section("Not learned", table=Table(("task", "state", "error"), rows))


def _data_warnings(document: Document) -> Iterator[Section]:
    rows = tuple((task["task"], warning) for task in document["per_task"] for warning in task["warnings"])
    if rows:
        text = "What was suspicious in the rows that tasks were learned from; their scores may mislead."
        yield Section("Suspicious data", text, table=Table(("task", "warning"), rows))


def _below_baselines(document: Document) -> Iterator[Section]:
    rows = tuple((task["task"], note) for task in document["per_task"] if (note := below_baseline(task)))
    if rows:
        text = "Tasks whose scores on test rows are below those of answers that take no learning."
        yield Section("Below a trivial answer", text, table=Table(("task", "scores"), rows))


def _kept_starts(document: Document) -> Iterator[Section]:
    rows = tuple((task["task"], note) for task in document["per_task"] if (note := kept_start(task)))
    if rows:
        text = (
            "Tasks whose start was better on their validation rows than every epoch of training: their deltas are "
            "untrained. Few validation rows cannot tell epochs apart; give more, or try another learning rate."
        )
        yield Section("Not improved by training", text, table=Table(("task", "what was kept"), rows))


def _scores(document: Document) -> Iterator[Section]:
    names, oracle, routed = document["tasks"], document["oracle"]["matrix"], document["routed"]["matrix"]
    if not names:
        return
    scale, after = shared_color_scale(oracle, routed), "after learning"
    rows = "A row for each task learned, a column for each task scored on its test rows, by number."
    above = "Just above the diagonal: the score before training, from the best earlier delta."
    heat = heatmap_table(oracle, names, scale=scale, caption="Score, with the task known", corner=after)
    yield Section("Scores with the task known", f"{rows} {above}", html=heat)
    heat = heatmap_table(routed, names, scale=scale, caption="Score, with the task chosen by the router", corner=after)
    yield Section("Scores with the task routed", f"{rows} A row sent to another task is wrong.", html=heat)
    columns = ("task", "score", "95 % low", "95 % high", "frozen", "trivial", "ECE", "perplexity", "test rows")
    keys = (
        "task",
        "score",
        "score_low",
        "score_high",
        "frozen_score",
        "baseline_score",
        "ece",
        "perplexity",
        "test_rows",
    )
    table = Table(columns, _cells(document["per_task"], keys))
    caption = (
        "Score on test rows with the task known; frozen: the best without any training; trivial: the most frequent "
        "label, or the text copied; ECE: expected calibration error of the answers' probabilities, lower is better; "
        "perplexity: of the targets' tokens, lower is better"
    )
    text = "\n".join(note for task in document["per_task"] if (note := serving_note(task)))
    yield Section("Score of each task", text, table=table, caption=caption)


def _routing(document: Document) -> Iterator[Section]:
    pairs, names = document["routed"]["confused"], document["tasks"]
    if document["routed"]["routing_accuracy"] is None:
        return
    advised = tuple((p["task"], p["routed_to"], p["share"], p["rows"], p["advice"]) for p in pairs if p["advice"])
    table = Table(("task", "sent to", "share", "rows", "what to do"), advised, {"share": ".1%"})
    has_score = [task["score"] is not None for task in document["per_task"]]  # purged tasks have none
    heat = heatmap_table(
        [
            [PERCENT * share if share is not None and shown else None for share in row]
            for row, shown in zip(confusion_shares(pairs, names), has_score, strict=True)
        ],
        names,
        scale=ColorScale(0.0, PERCENT),
        caption="Percent of each task's test rows that were sent to each task",
        corner="own task",
        spec=".1f",
    )
    yield Section(
        "Where inputs were sent",
        "After the last task, each input was sent to its likeliest task. Columns go by number.",
        table=table if advised else None,
        caption="Tasks that are confused often",
        html=heat,
    )


def _curves(registry: Registry, document: Document) -> Iterator[Section]:
    """Yield the curves of tasks that were trained; a head fitted in closed form has none."""
    names, curves = {task["delta"]: task["task"] for task in document["per_task"]}, dict[str, list[float]]()
    for score in registry.scores(learned_in=document["stream"], split="validation", mode="curve"):
        curves.setdefault(names[score.delta], []).append(score.value)
    if trained := {name: curves[name] for name in names.values() if len(curves.get(name, ())) > 1}:
        best_epochs = {task["task"]: task["best_epoch"] for task in document["per_task"] if task["task"] in trained}
        text = "Score on validation rows before training and after each epoch; the best, larger, was kept."
        yield Section(
            "Learning curves",
            f"{text} All panels span the same range.",
            html=learning_curve_panels(trained, best_epochs),
        )


def _lineage(registry: Registry, document: Document) -> Iterator[Section]:
    edges = registry.parents(document["stream"])
    if not edges:
        if document["per_task"]:
            yield Section("Lineage", "No task came from another.")
        return
    tasks = {task["delta"]: task for task in document["per_task"]}
    columns = ("delta", "came from", "how", "weight", "score", "from scratch", "gain")
    rows = []
    for edge in edges:
        task = tasks[edge["delta"]]
        link = (edge["delta"], edge["parent"], edge["kind"].replace("_", " "), edge["weight"])
        rows.append((*link, task["score"], task["scratch_score"], transfer_gain(task)))
    alone = len(tasks) - len({edge["delta"] for edge in edges})
    text = f"{alone} of {len(tasks)} tasks came from no other. An arrow leads from a delta to what came from it."
    caption = "Warm starts; gain: over training from scratch, where that was trained too"
    yield Section("Lineage", text, table=Table(columns, tuple(rows)), caption=caption, html=lineage_graph(edges))


def _costs(document: Document) -> Iterator[Section]:
    tasks = document["per_task"]
    if not tasks:
        return
    parameters, size, seconds, share = (
        sum(task[key] for task in tasks) for key in ("parameters", "bytes", "seconds", "share")
    )
    keys = ("delta", "method", "parameters", "share", "bytes", "seconds", "examples_per_second")
    formats = {"share": ".2%", "bytes": ",.0f", "seconds": ",.1f", "examples per second": ",.0f"}
    columns, rows = tuple(key.replace("_", " ") for key in keys), _cells(tasks, keys)
    text = (
        f"Together {parameters:,} parameters, {share:.1%} of the backbone, in {size / MEGA:,.1f} MB, "
        f"learned in {seconds:,.0f} seconds."
    )
    yield Section("Costs", text, table=Table(columns, rows, formats), caption="What each task's delta takes")


def _cells(tasks: Sequence[Document], keys: Sequence[str]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(task[key] for key in keys) for task in tasks)
