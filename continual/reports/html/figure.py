"""Figures of matplotlib as part of a page: their ink is the page's, in light and in dark."""

import warnings
from io import StringIO
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from continual.escaping import escape_control_characters

PIXELS = 96 / 72  # of a point
DRAWN = {"svg.fonttype": "none", "svg.hashsalt": "continual"}  # text stays text; the same figure gives the same page
BLACK, WHITE = "#000000", "#ffffff"
LEFT_OUT = ("metadata", "style")  # the latter would be the whole page's


def inline_svg(figure: Figure, *, label: str, prefix: str) -> Markup:
    """A figure as SVG that stands in HTML: black is the page's ink, a white area its paper, and nothing lies behind it.

    What is to stay black or white on a colour of its own is drawn in #010101 or #fefefe.
    label: what is read aloud in its place · prefix: of its ids, which differ from those of other figures of the page.
    """
    text = StringIO()
    with matplotlib.rc_context(DRAWN), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the reader's fonts show the text, not matplotlib's
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(escape_control_characters(text.getvalue()))
    width = float(root.attrib.pop("width").removesuffix("pt")) * PIXELS
    del root.attrib["height"], root.attrib["version"]
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(name): _value(element.tag, value, prefix) for name, value in element.items()}
        if "id" in element.attrib:
            element.set("id", prefix + element.attrib["id"])
        if element.get("href", "").startswith("#"):  # else an image, which is in the link itself
            element.set("href", f"#{prefix}{element.attrib['href'][1:]}")
        for part in [part for part in element if _local(part.tag) in LEFT_OUT]:
            element.remove(part)
    root.attrib |= {"role": "img", "aria-label": escape_control_characters(label), "style": f"--width: {width:.0f}px"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local(name: str) -> str:
    """A name without its namespace, which SVG in HTML does not need."""
    return name.rpartition("}")[2]


def _value(tag: str, value: str, prefix: str) -> str:
    value = value.replace("url(#", f"url(#{prefix}").replace(BLACK, "currentColor")
    return value if tag == "text" else value.replace(WHITE, "var(--paper)")
