"""A page out of a template file and values.

A template begins with `{% extends "base.html.jinja" %}` and fills the blocks `title` and `body`. Whatever is
put into it is escaped. The page carries its style in it and forbids the browser everything else (Content
Security Policy, https://www.w3.org/TR/CSP3/), so that not even text that slipped through could load or run.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent


def render(template: Path, **values: object) -> str:
    """The page of a template with `values`; raises jinja2's `UndefinedError` for a name that is missing."""
    return _environment(template.parent).get_template(template.name).render(values)


def shown(value: object) -> str:
    """A value for a cell: a dash for None and empty ones, numbers with five digits and thousands apart."""
    if value is None or value in ("", [], {}, ()):
        return "—"
    if isinstance(value, bool):
        return "yes 是" if value else "no 否"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.5g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return str(value)


@cache
def _environment(folder: Path) -> Environment:
    # Here, not above: jinja2 is needed by those who write a page, and by no rank of a training.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment
