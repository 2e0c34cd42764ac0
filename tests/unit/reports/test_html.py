"""HTML pages: escaping, self-containment, accessibility and layout."""

import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from continual.escaping import escape_control_characters
from continual.reports import html as package
from continual.reports.html import Section, Table, page, write_page
from continual.reports.html.curves import learning_curve_panels
from continual.reports.html.document import TEMPLATES, format_cell, render
from continual.reports.html.figure import inline_svg
from continual.reports.html.heatmap import ColorScale, heatmap_table, shared_color_scale
from continual.reports.html.lineage import lineage_graph
from tasks.errors import InputError
from tests.helpers.pages import HOSTILE, Parsed, leaves

CSS = (Path(package.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")


def figure(label: str = "a", *, text: str = "score") -> Figure:
    drawn = Figure(figsize=(3, 2))
    axes = drawn.add_subplot()
    axes.plot([0, 1, 2], [0.5, 0.7, 0.6], marker="o", label=label)
    axes.fill_between([0, 1, 2], [0, 0, 1], color="white")
    axes.text(1, 0.6, text, parse_math=False)
    axes.set_xlim(0, 1.5)
    return drawn


def whole(text: str) -> str:
    """Return a page with a text in every part that can hold one."""
    edges = [{"delta": f"{text}@1", "parent": f"{text}@2", "kind": "warm_start", "weight": 0.5}]
    table = Table(("task", "score"), ((text, 0.5), (text, None)))
    return page(
        text,
        [
            Section("Table", table=table, caption=text),
            Section(text, html=heatmap_table([[0.5]], [text], scale=ColorScale(0, 1), caption=text, corner=text)),
            Section("Curves", html=learning_curve_panels({text: [0.1, 0.2]})),
            Section("Lineage", html=lineage_graph(edges)),
            Section("Figure", figure=figure(text="label"), caption=text),
        ],
        summary=text,
    )


PLAIN = Parsed(whole("plain"))


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(), min_size=1).filter(str.strip))
def test_any_text_is_escaped(text: str) -> None:
    parsed = Parsed(whole(text))
    assert parsed.tags == PLAIN.tags
    assert parsed.inside("h1") == [escape_control_characters(text)]
    assert parsed.inside("title")[0] == escape_control_characters(text)
    assert parsed.of("title") == [escape_control_characters(text)] * len(PLAIN.of("title"))
    assert escape_control_characters(text) in parsed.of("aria-label")
    whole(text).encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_escaped(text: str) -> None:
    html = whole(text)
    assert Parsed(html).tags == PLAIN.tags
    assert leaves(html) == []
    assert "49" not in Parsed(html).inside("h1")[0]
    assert not set(html) & {"\x1b", "\u202e"}


def test_the_helper_reports_outside_references() -> None:
    assert leaves(whole("plain")) == []
    for outside in (
        '<img src="https://example.com/a.png">',
        "<script>1</script>",
        '<link href="//example.com/a.css">',
        "<style>p { background: url(a.png) }</style>",
    ):
        assert leaves(outside)


def test_a_page_forbids_itself_all_requests_and_scripts() -> None:
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in PLAIN.of("content")


def test_numbers_are_right_aligned() -> None:
    rows = (
        ("a", 0.12345, 12345, None, True),
        ("b", None, np.int64(3), None, False),
        ("c", np.float32(1), 0, None, None),
    )
    table = Table(("task", "score", "parameters", "nothing", "said"), rows)
    assert table.numeric == (False, True, True, True, False)
    assert table.texts == [
        ["a", "0.123", "12,345", "–", "True"],
        ["b", "–", "3", "–", "False"],
        ["c", "1.000", "0", "–", "–"],
    ]
    assert Table(("share",), ((0.0148,),), {"share": ".2%"}).texts == [["1.48%"]]
    assert format_cell(float("nan")) == "nan"
    html = page("p", [Section("s", table=table)])
    assert html.count('class="number"') == 3 * (1 + len(rows))


def test_table_cells_have_header_scopes() -> None:
    html = page("p", [Section("Scores", table=Table(("task", "score"), (("a", 0.5),)))])
    parsed = Parsed(html)
    assert parsed.of("scope") == ["col", "col", "row"]
    assert tuple(tag for tag, *_ in parsed.tags if tag in ("caption", "span")) == ("caption", "span")
    assert parsed.inside("span") == ["Scores"]
    assert parsed.of("role") == ["region"]
    assert "tabindex" in next(tag for tag in parsed.tags if tag[0] == "div")


def test_long_pages_have_a_table_of_contents() -> None:
    many, few = (page("p", [Section(f"part {i}") for i in range(count)]) for count in (4, 3))
    assert "<nav" not in few
    parsed = Parsed(many)
    assert [f"#{name}" for name in parsed.of("id") if name.startswith("section-")] == parsed.of("href")[1:]


def test_figures_do_not_share_ids() -> None:
    html = page("p", [Section("one", figure=figure()), Section("two", figure=figure())])
    parsed = Parsed(html)
    assert len(parsed.of("id")) == len(set(parsed.of("id"))) > 20
    used = {value[1:] for value in parsed.of("href") if value.startswith("#")}
    used |= {name for value in parsed.of("clip-path") for name in re.findall(r"url\(#([^)]+)\)", value)}
    assert len(used) > 4
    assert used <= set(parsed.of("id"))


def test_a_figure_uses_the_pages_text_colour() -> None:
    drawn = figure(text='<b> id="x" #000000 $y$ 日本')
    svg = inline_svg(drawn, label="a & <b>", prefix="f0-")
    parsed = Parsed(svg)
    assert (parsed.tags[0][0], *parsed.tags[0][2:4]) == ("svg", "role", "aria-label")
    assert parsed.of("aria-label") == ["a & <b>"]
    assert '<b> id="x" #000000 $y$ 日本' in parsed.inside("text")
    styles = " ".join(parsed.of("style"))
    assert "#000000" not in styles
    assert "#ffffff" not in styles
    assert "currentColor" in styles
    assert "var(--paper)" in styles
    assert not {"style", "metadata"} & {tag for tag, *_ in parsed.tags}, "these would be the whole page's"
    assert svg == inline_svg(drawn, label="a & <b>", prefix="f0-"), "the same figure, the same page"


def test_an_image_in_a_figure_is_embedded() -> None:
    drawn = Figure(figsize=(2, 2))
    drawn.add_subplot().imshow(np.eye(3))
    html = page("p", [Section("map", figure=drawn)])
    (image,) = (attributes["href"] for tag, attributes in Parsed(html).elements if tag == "image")
    assert b64decode(image.removeprefix("data:image/png;base64,"), validate=False).startswith(b"\x89PNG")
    assert leaves(html) == []


def test_a_matrix_is_a_table_whose_cells_are_coloured() -> None:
    scale = shared_color_scale([[0.5, None], [0.7, 1.0]])
    assert (scale, [scale.level(value) for value in (0.0, 0.5, 0.75, 1.0, 2.0)]) == (
        ColorScale(0.5, 1.0),
        [0, 0, 5, 10, 10],
    )
    scale = shared_color_scale([[0.9, 0.9]])
    assert scale.low == pytest.approx(0.8)
    assert scale.high == 0.9
    assert shared_color_scale([]).high == 1.0
    html = heatmap_table([[0.5, None], [0.7, 1.0]], ["a", "b"], scale=scale, caption="Scores", corner="after")
    parsed = Parsed(html)
    assert parsed.inside("td") == ["0.50", "0.70", "1.00"]
    cells = [tag for tag in parsed.tags if tag[0] == "td"]
    assert cells == [("td", "class"), ("td",), ("td", "class"), ("td", "class")]
    assert parsed.of("aria-label")[-2:] == ["a", "b"]


DARK = re.compile(r"@media \(prefers-color-scheme: dark\) \{(.*?)\n\}", flags=re.DOTALL)
SCHEMES = {"light": DARK.sub("", CSS), "dark": "".join(DARK.findall(CSS))}


def luminance(colour: str) -> float:
    """Return WCAG 2.2's relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("rules", SCHEMES.values(), ids=SCHEMES)
def test_every_text_colour_has_enough_contrast(rules: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    named = dict(re.findall(r"--(\w+): (#\w{6});", rules))
    assert named.keys() == {"paper", "panel", "ink", "soft", "accent", "line"}
    for ink in ("ink", "soft", "accent"):
        assert min(contrast(named[ink], named[under]) for under in ("paper", "panel")) >= 4.5, ink
    levels = re.findall(r"\.level-(\d+) \{ background: (#\w{6}); color: (#\w{6}); \}", rules)
    assert [int(level) for level, _, _ in levels] == list(range(11))
    assert min(contrast(under, ink) for _, under, ink in levels) >= 4.5


def test_parents_stand_left_of_their_children() -> None:
    edges: list[dict[str, Any]] = [
        {"delta": child, "parent": parent, "kind": "merged", "weight": 0.5}
        for child, parent in (("c", "a"), ("c", "b"), ("d", "c"), ("d", "a"), ("e", "b"))
    ]
    parsed = Parsed(lineage_graph(edges))
    boxes = [{key: float(box[key]) for key in ("x", "y", "width", "height")} for box in nested(parsed)]
    place = dict(zip(parsed.inside("title"), boxes, strict=True))
    assert place.keys() == set("abcde")
    assert all(place[e["parent"]]["x"] + place[e["parent"]]["width"] < place[e["delta"]]["x"] for e in edges)
    beside = [(place[first], place[second]) for first, second in ("ab", "ce")]
    assert all(first["x"] == second["x"] and first["y"] + first["height"] < second["y"] for first, second in beside)
    assert parsed.inside("text")[: len(edges)] == ["merged 0.5"] * len(edges)
    assert max(box["y"] + box["height"] for box in boxes) < float(parsed.elements[1][1]["height"])


def nested(parsed: Parsed) -> list[dict[str, str]]:
    return [attributes for tag, attributes in parsed.elements if tag == "svg" and "x" in attributes]


@pytest.mark.parametrize("name", ["a" * 300 + "@12", "務" * 300 + "@1", "short@1"])
def test_long_names_stay_in_their_boxes(name: str) -> None:
    parsed = Parsed(lineage_graph([{"delta": name, "parent": "b@1", "kind": "stage", "weight": 1.0}]))
    shown_as = parsed.inside("text")[-1]
    assert name in parsed.inside("title")
    assert len(shown_as) <= 24
    assert shown_as.endswith(name[-2:])
    assert float(nested(parsed)[-1]["width"]) < 24 * 2 * 8


def test_the_best_epoch_of_a_curve_is_marked() -> None:
    parsed = Parsed(learning_curve_panels({"a": [0.5, 0.9, 0.7], "b": [0.2, 0.2]}))
    assert parsed.of("r") == ["2", "4", "2", "4", "2"]
    heights = [float(value) for value in parsed.of("cy")]
    assert heights[1] < heights[2] < heights[0]
    assert heights[3] == heights[4]
    assert parsed.of("aria-label")[0] == "a: 0.500 before training, at best 0.900 after epoch 1 of 2"
    assert Parsed(learning_curve_panels({"a": [0.5]})).of("r") == ["4"]


def test_an_undefined_template_variable_is_an_error() -> None:
    assert TEMPLATES.autoescape
    with pytest.raises(Exception, match="facts"):
        render("facts.html")


def test_a_page_is_written_atomically(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_page(file, "one é")
    write_page(file, "two")
    assert file.read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    for place in (tmp_path, tmp_path / "none" / "a.html", file / "a.html", tmp_path / ("x" * 300), Path("/dev/null")):
        with pytest.raises(InputError, match="Give"):
            write_page(place, "three")
    assert file.read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
