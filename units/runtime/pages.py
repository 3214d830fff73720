"""HTML pages from Jinja2 templates: one environment and one stylesheet for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from units.runtime.extras import required


def environment(folder: Path) -> Any:
    """The jinja2.Environment for the templates of a folder; they may include `page.css`, the common stylesheet.

    Every text is escaped, and a name that a template does not get is an error.

    Raises:
        ImportError: jinja2 is not installed.
    """
    jinja2 = required("jinja2")
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
