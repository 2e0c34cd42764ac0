"""Convert matplotlib figures to inline SVG that follows the page's colours, light and dark."""

import warnings
from io import StringIO
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from continual.escaping import escape_control_characters

PIXELS_PER_POINT = 96 / 72
SVG_RC_PARAMS = {"svg.fonttype": "none", "svg.hashsalt": "continual"}  # text stays text; output is reproducible
BLACK, WHITE = "#000000", "#ffffff"
REMOVED_ELEMENTS = ("metadata", "style")  # a style would apply to the whole page


def inline_svg(figure: Figure, *, label: str, prefix: str) -> Markup:
    """Convert a figure to SVG for an HTML page, without a background.

    Black becomes the page's text colour, and white areas its background; use #010101 or #fefefe for marks that stay
    black or white on a coloured area.

    Args:
        figure: The figure.
        label: Description for screen readers.
        prefix: Prefix of all ids, to differ from other figures of the page.
    """
    svg = StringIO()
    with matplotlib.rc_context(SVG_RC_PARAMS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the browser's fonts render the text, not matplotlib's
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(escape_control_characters(svg.getvalue()))
    width = float(root.attrib.pop("width").removesuffix("pt")) * PIXELS_PER_POINT
    del root.attrib["height"], root.attrib["version"]
    for element in root.iter():
        element.tag = _local_name(element.tag)
        element.attrib = {
            _local_name(name): _attribute_value(element.tag, value, prefix) for name, value in element.items()
        }
        if "id" in element.attrib:
            element.set("id", prefix + element.attrib["id"])
        if element.get("href", "").startswith("#"):  # else an image, which is in the link itself
            element.set("href", f"#{prefix}{element.attrib['href'][1:]}")
        for part in [part for part in element if _local_name(part.tag) in REMOVED_ELEMENTS]:
            element.remove(part)
    root.attrib |= {"role": "img", "aria-label": escape_control_characters(label), "style": f"--width: {width:.0f}px"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local_name(name: str) -> str:
    """Return a name without its namespace, which SVG in HTML does not need."""
    return name.rpartition("}")[2]


def _attribute_value(tag: str, value: str, prefix: str) -> str:
    """Prefix references to ids, and replace black and white by the page's colours."""
    value = value.replace("url(#", f"url(#{prefix}").replace(BLACK, "currentColor")
    return value if tag == "text" else value.replace(WHITE, "var(--paper)")
