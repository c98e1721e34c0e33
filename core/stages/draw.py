"""Stage kind `draw`: a figure of what other stages found, as values, PNG, SVG and, for surfaces, a page."""

import json
from functools import partial
from typing import Literal

from core.figures import AnyFigure
from core.figures.base import Part
from core.stages.base import Context, Finished, Outcome, Stage

VALUES = "values"
MEDIA = {
    VALUES: "application/json", "png": "image/png", "svg": "image/svg+xml", "html": "text/html; charset=utf-8",
}  # fmt: skip
"""Artifact -> media type."""


class Draw(Stage):
    """Draw `figure` from `parts`; its bytes are a function of their results and of the labels."""

    kind: Literal["draw"] = "draw"
    figure: AnyFigure
    """What is drawn."""
    parts: list[str]
    """Keys of the stages it shows, one per model."""
    labels: list[str]
    """Names of the models, in the order of `parts`."""

    def parents(self) -> tuple[str, ...]:
        """Return the keys of the parts."""
        return tuple(self.parts)

    def run(self, context: Context) -> Outcome:
        """Return the figure's values and its forms."""
        from core.drawing import forms, styled

        values = self.figure.values([self._part(context, *pair) for pair in zip(self.parts, self.labels, strict=True)])
        found = {VALUES: json.dumps(values).encode()}
        with styled():
            found |= forms(self.figure.draw(values))
        page = self.figure.page(values)
        if page is not None:
            found["html"] = page.encode()
        payload = {"title": values["title"], "caption": values["caption"]}
        return Outcome(payload, {name: (MEDIA[name], data) for name, data in found.items()})

    def _part(self, context: Context, key: str, label: str) -> Part:
        found = context.parent(key)
        return Part(label, found.spec, found.payload, partial(_artifact, context, found))


def _artifact(context: Context, found: Finished, name: str) -> bytes:
    return context.artifact(found.artifact(name))
