"""The demo's screen: what was learned, gained, forgotten and routed."""

from io import StringIO

from rich.console import Console

from continual.cli.demo import print_summary


def entry(task: str, **scores: object) -> dict[str, object]:
    values: dict[str, object] = {
        "frozen_score": 0.61,
        "score": 0.7,
        "scratch_score": None,
        "parents": [],
        "share": 0.015,
    }
    return {"task": task} | values | scores


def test_the_summary_fits_on_a_screen_and_shows_every_figure() -> None:
    parents = [{"delta": "networkx@1", "weight": 1.0}]
    document = {
        "per_task": [entry("networkx"), entry("torch", score=0.823, scratch_score=0.7, parents=parents)],
        "oracle": {"matrix": [[0.7, None], [0.7, 0.823]], "forgetting": 0.0},
        "routed": {"matrix": [[0.7, None], [0.65, 0.8]], "forgetting": 0.05, "routing_accuracy": 0.934},
    }
    console = Console(width=80, record=True, file=StringIO())
    print_summary(console, document)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith((" networkx", " torch"))}
    assert rows == {
        "networkx": ["61.0", "70.0", "–", "scratch", "70.0", "65.0"],
        "torch": ["61.0", "82.3", "70.0", "networkx", "82.3", "80.0"],
    }
    text = " ".join(" ".join(lines).split())
    assert "trained 1.5 % of the backbone's parameters" in text
    assert "Forgotten: 0.0 points" in text
    assert "5.0 where the router chooses" in text
    assert "Routed: 93.4 %" in text
