"""Stage kind `surface`: the loss of one model over a plane through every clean test image."""

import json
from fractions import Fraction
from typing import Any, Literal

from pydantic import model_validator

from core.defenses.e2sad import E2SAD
from core.fields import Count, Flag, Seed
from core.ranges import Points, RadiusAttack, Reach
from core.stages.base import Context, Outcome, Stage, micro_batch
from core.stages.train import loaded

SURFACE = "surface"


class Surface(Stage):
    """Look at `target` at x + t1 * g1 + t2 * g2, t1 and t2 in [0, reach] (the paper's appendix A.2 and A.3)."""

    kind: Literal["surface"] = "surface"
    target: str
    """Key of the train stage of the model that is looked at."""
    direction: RadiusAttack
    """g1 is the sign of this attack's perturbation."""
    across: Literal["random", "path"] = "random"
    """g2, orthogonal to g1: random signs, or the direction that brings the end of `path` into the plane."""
    reach: Reach = Fraction(2, 5)
    """Largest t1 and t2, in pixel units; t2 in lengths of g1 where g2 leads to the end of `path`."""
    points: Points = 21
    """Values of t1, and of t2, evenly spaced from 0 to `reach`."""
    path: E2SAD | None = None
    """Whose two steps are taken from every image and shown as a path; null shows none."""
    clip: Flag = True
    """Whether the images of the plane are clipped to [0, 1]; the paper prints no clip."""
    seed: Seed = 0
    """Seed of the random signs."""
    limit: Count | None = None
    """Only the first `limit` test images; null is the whole test set."""

    @model_validator(mode="after")
    def _across_needs_its_path(self) -> "Surface":
        if self.across == "path" and self.path is None:
            raise ValueError('across "path" needs a path')
        return self

    def parents(self) -> tuple[str, ...]:
        """Return the target's key."""
        return (self.target,)

    @property
    def ticks(self) -> list[float]:
        """Return the values of t1 and of t2."""
        return [float(self.reach * i / (self.points - 1)) for i in range(self.points)]

    def frame(self, dataset: str, n: int) -> dict[str, Any]:
        """Return what the values say of what was looked at, beside what was found there."""
        return {
            "dataset": dataset, "n": n, "direction": self.direction.label(), "across": self.across, "clip": self.clip,
            "steps": self.path and self.path.label(), "t": self.ticks,
        }  # fmt: skip

    def run(self, context: Context) -> Outcome:
        """Return mean loss and accuracy at every point, and along the path, as JSON."""
        from core.portions import Portion
        from core.surfaces import Plane, grid

        spec, model, images, labels = loaded(context, self.target, self.execution, self.limit)
        plane = Plane(self.direction, self.ticks, self.across == "path", self.clip, self.seed)
        portion = Portion.of_images(self.execution.device, context.log)
        found = grid(
            model, images, labels, plane, self.path, self.execution,
            smoothing=spec.defense.label_smoothing, monitor=context.monitor, portion=portion,
        )  # fmt: skip
        values = {
            **self.frame(spec.dataset, len(labels)), "loss": found.loss, "accuracy": found.accuracy, "path": found.path,
        }  # fmt: skip
        payload = {
            "dataset": spec.dataset,
            "n": len(labels),
            "clean_loss": found.loss[0][0],
            "largest_loss": max(map(max, found.loss)),
            "mean_loss": sum(map(sum, found.loss)) / self.points**2,
            "clean_accuracy": found.accuracy[0][0],
            "smallest_accuracy": min(map(min, found.accuracy)),
        }
        artifacts = {SURFACE: ("application/json", json.dumps(values).encode())}
        return Outcome(payload, artifacts, environment=micro_batch(portion.lowered))
