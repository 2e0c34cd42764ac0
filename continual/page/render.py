"""The templates of this package: what they are given is shown as text, never obeyed."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from continual.visible import escape_control_characters


def _text(value: Any) -> Any:
    return escape_control_characters(value) if isinstance(value, str) and not isinstance(value, Markup) else value


TEMPLATES = Environment(
    loader=PackageLoader("continual.page"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_text,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **given: Any) -> Markup:
    """What a template makes of what it is given, as HTML that others may include as it is."""
    return Markup(TEMPLATES.get_template(template).render(given))
