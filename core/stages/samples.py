"""Stage kind `samples`: one test image of every class, clean and after each of e2SAD's two steps."""

from typing import Literal

from core.defenses.e2sad import E2SAD
from core.stages.base import Context, Outcome, Stage, micro_batch
from core.stages.train import loaded

IMAGES = "images"
STEPS = ("clean", "first", "second")


class Samples(Stage):
    """Show `target` the first test image of every class, clean and as the two steps of `path` change it."""

    kind: Literal["samples"] = "samples"
    target: str
    """Key of the train stage of the model that is looked at."""
    path: E2SAD
    """Whose two steps are taken."""

    def parents(self) -> tuple[str, ...]:
        """Return the target's key."""
        return (self.target,)

    def run(self, context: Context) -> Outcome:
        """Return the float32 images, and what the model takes each of them for."""
        import torch
        from safetensors.torch import save

        from core.compute import configured, unit_images
        from core.evaluation import predict
        from core.portions import Portion
        from core.surfaces import two_steps

        spec, model, images, every = loaded(context, self.target, self.execution)
        positions = torch.stack([(every == label).nonzero()[0, 0] for label in every.unique()])
        labels = every[positions]
        portion = Portion(len(labels), context.log)

        def steps(begin: int, size: int) -> torch.Tensor:
            of, here = slice(begin, begin + size), (labels.to(clean.device), positions.to(clean.device))
            return torch.stack(two_steps(self.path, model, clean[of], here[0][of], here[1][of]))

        with configured(self.execution):
            clean = unit_images(images[positions], self.execution)
            first, second = torch.cat(list(portion.over(len(labels), steps)), dim=1)
        shown = {name: step.to("cpu", torch.float32, memory_format=torch.contiguous_format)
                 for name, step in zip(STEPS, (clean, first, second), strict=True)}  # fmt: skip
        seen = {name: predict(model, step, self.execution, portion).tolist() for name, step in shown.items()}
        payload = {
            "dataset": spec.dataset, "n": len(labels), "steps": self.path.label(), "positions": positions.tolist(),
            "labels": labels.tolist(), "predictions": seen,
        }  # fmt: skip
        artifacts = {IMAGES: ("application/x-safetensors", save(shown))}
        return Outcome(payload, artifacts, environment=micro_batch(portion.lowered))
