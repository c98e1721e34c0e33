"""The interactive page of loss surfaces: one document with its script and its values, which loads nothing."""

import json
from html import escape
from importlib import resources
from typing import Any


def page(values: dict[str, Any]) -> str:
    """Return the page; its own policy forbids every load from elsewhere."""
    template = resources.files("core").joinpath("surface_page.html").read_text(encoding="utf-8")
    inert = json.dumps(values).replace("<", "\\u003c")  # no label can end the script it stands in
    filled = template.replace("{{title}}", escape(values["title"])).replace("{{caption}}", escape(values["caption"]))
    return filled.replace("{{values}}", inert)
