"""Figure kind `samples`: clean images beside e2SAD's first and second adversarial images of them."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from core.defenses.e2sad import E2SAD
from core.figures.base import Figure, Part, Values
from core.figures.path import steps_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    from core.datasets.base import Dataset
    from core.execution import Execution
    from core.stages.base import Stage
    from core.stages.train import Train

ROWS = {"clean": "clean", "first": "first step", "second": "second step"}


class SamplesFigure(Figure):
    """One test image of every class: clean, and after e2SAD's first and second step, with what the model sees."""

    version = 2  # 2: pixels outside [0, 1] are drawn as its ends
    kind: Literal["samples"] = "samples"
    """What is drawn."""
    path: E2SAD | None = None
    """Whose two steps are taken; left out, those of each model that is e2SAD's, and e2SAD's defaults on the others."""

    def resolved(self, dataset: Dataset, fill: Callable[[Any], Any]) -> Self:
        """Return the figure with the dataset's defaults of the path, where there is one."""
        return self.model_copy(update={"path": self.path and fill(self.path)})

    def part(self, train: Train, key: str, dataset: Dataset, execution: Execution) -> Stage:
        """Return the images of one model."""
        from core.stages.samples import Samples

        return Samples(target=key, path=self.path or steps_on(train, dataset), execution=execution)

    def values(self, parts: Sequence[Part]) -> Values:
        """Return the images of every model as bytes of pixels (base64, row by row), with labels and predictions."""
        models = [_rows(part) for part in parts]
        left = ", ".join(model["label"] for model in models if model["clipped"])
        return {
            "title": "Clean, first and second adversarial images",
            "caption": f"The first test image of every class of {parts[0].payload['dataset']}. Above each image: what "
            "the model takes it for, framed where that is wrong. First step: eps1 from the clean image; second step: "
            "eps2 from there." + (f" Pixels that left [0, 1] are drawn as its ends: {left}." if left else ""),
            "models": models,
        }

    def draw(self, values: Values) -> Canvas:
        """Return three rows of images per model, a column per class."""
        from core.drawing import canvas

        columns, rows = len(values["models"][0]["labels"]), 3 * len(values["models"])
        picture = canvas(0.72 * columns + 1.2, 0.92 * rows + 0.2 * len(values["models"]))
        groups = picture.subfigures(len(values["models"]), 1, squeeze=False)[:, 0]
        for group, model in zip(groups, values["models"], strict=True):
            said = f"{model['label']}, steps of {model['steps']}; true → predicted where wrong"
            group.suptitle(said, x=0.01, ha="left", fontsize=9)
            for row, line in zip(group.subplots(3, columns, squeeze=False), model["rows"], strict=True):
                _draw_row(row, line, model)
        return picture


def _rows(part: Part) -> dict[str, Any]:
    from safetensors.numpy import load

    images = load(part.artifact("images"))
    rows = [
        {"name": name, "predicted": part.payload["predictions"][name],
         "pixels": [b64encode((image.clip(0, 1) * 255).round().astype("uint8").tobytes()).decode()
                    for image in images[name]]}
        for name in ROWS
    ]  # fmt: skip
    return {
        "label": part.label, "steps": part.payload["steps"], "labels": part.payload["labels"],
        "clipped": any(bool(((image < 0) | (image > 1)).any()) for image in images.values()),
        "shape": list(images["clean"].shape[1:]), "rows": rows,
    }  # fmt: skip


def _draw_row(panels: Sequence[Axes], row: dict[str, Any], model: dict[str, Any]) -> None:
    for axes, pixels, label, predicted in zip(
        panels, row["pixels"], model["labels"], row["predicted"], strict=True
    ):  # fmt: skip
        axes.imshow(_image(pixels, model["shape"]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        wrong = predicted != label
        axes.set_title(
            f"{label}→{predicted}" if wrong else str(predicted), fontsize=8, pad=2,
            color="#D55E00" if wrong else "#222222", fontweight="bold" if wrong else "normal",
        )  # fmt: skip
        for spine in axes.spines.values():
            spine.set(visible=wrong, color="#D55E00", linewidth=1.5)
    panels[0].set_ylabel(ROWS[row["name"]], rotation=0, ha="right", va="center", fontsize=8)


def _image(pixels: str, shape: Sequence[int]) -> Any:
    import numpy as np

    image = np.frombuffer(b64decode(pixels), np.uint8).reshape(shape)
    return image[0] if shape[0] == 1 else image.transpose(1, 2, 0)
