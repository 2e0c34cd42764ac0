"""Streams in a registry without training, and a parser of the pages that show them."""

from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

from registry import Parent, Registry, Score
from tests.helpers.registries import accuracy, begin, delta_record, make_registry, task_record

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</style></svg></table>",
    "$x_1$ {{ 7 * 7 }} {% raw %}",
    "\u202egnirts \u0627\u0644\u0645\u0647\u0645\u0629",
    "日本語のとても長いタスク名前です" * 4,
    "a" * 400,
    "&amp; \x1b[2J url(http://example.com/x)",
)


def fill_stream(folder: Path, tasks: Sequence[str], *, unlearned: Sequence[str] = ()) -> Registry:
    """Register a stream `core` of tasks with scores after every task; two of three have a warm start."""
    registry, names = make_registry(folder), [f"{task}@1" for task in tasks]
    begin(registry, *tasks, *unlearned)
    for number, task in enumerate(tasks):
        neighbours = [names[number - 1], names[(number - 1) // 2]][: number % 3]
        parents = [Parent(delta=name, kind="warm_start", weight=1 / len(neighbours), score=0.5) for name in neighbours]
        with registry.unit_of_work() as unit:
            unit.add_task(task_record(task))
            record = delta_record(registry, task, warm_start="nearest" if parents else "scratch")
            delta = unit.add_delta(record, parents=parents, scores=_scores(number, len(tasks)))
            unit.mark_learned("core", number, delta=delta)
    with registry.unit_of_work() as unit:
        for number, _ in enumerate(unlearned, start=len(tasks)):
            unit.mark_failed("core", number, error="LearnError: <b>the loss</b> is not a number\nafter 3 steps")
        if names:
            confusions = dict.fromkeys(pairwise(names), 2)
            last = len(names) - 1
            unit.add_routed_scores("core", last, {name: _routed(last) for name in names}, confusions=confusions)
    return registry


def _scores(number: int, tasks: int) -> list[Score]:
    curve = [
        accuracy(0.4 + 0.02 * number / tasks + 0.1 * epoch, split="validation", step=epoch, mode="curve")
        for epoch in range(3)
    ]
    test_score = 0.5 + 0.4 / (1 + number)
    alone = [accuracy(test_score), accuracy(test_score, split="validation"), accuracy(0.4, mode="frozen")]
    alone += [accuracy(0.6, mode="scratch"), accuracy(0.45, mode="neighbour")]
    return [*curve, *alone, *(score for step in range(number, tasks) for score in _routed(step))]


def _routed(step: int) -> list[Score]:
    values = {"accuracy": 0.4, "routing_accuracy": 0.8, "abstained": 0.1}
    return [accuracy(v, metric=m, mode="routed", stream="core", step=step) for m, v in values.items()]


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its texts with the enclosing tag, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and data.strip():
            self.texts.append((self._open[-1], data))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    @property
    def tags(self) -> list[tuple[str, ...]]:
        """Each tag with the names of its attributes."""
        return [(tag, *attributes) for tag, attributes in self.elements]

    def of(self, name: str) -> list[str]:
        """Return the values of all attributes of this name."""
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def inside(self, tag: str) -> list[str]:
        return [text for enclosing_tag, text in self.texts if enclosing_tag == tag]


def leaves(html: str) -> list[str]:
    """Return everything in a page that would load or link to an outside resource."""
    parsed = Parsed(html)
    referred = [
        value
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
        for value in parsed.of(name)
    ]
    references = [value for value in referred if not value.startswith(("#", "data:,", "data:image/png;base64,"))]
    styles = [*parsed.inside("style"), *parsed.of("style"), *parsed.of("clip-path"), *parsed.of("fill")]
    references += [style for style in styles if "@import" in style or "url(" in style.replace("url(#", "")]
    return references + [
        tag for tag, *_ in parsed.tags if tag in ("script", "iframe", "img", "object", "embed", "base")
    ]
