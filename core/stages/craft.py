"""Stage kind `craft`: one attack against one substitute, over the test set."""

from typing import Literal

from core.attacks import AnyAttack
from core.fields import Count
from core.stages.base import Context, Outcome, Stage, micro_batch
from core.stages.train import loaded

EXAMPLES = "examples"


class Craft(Stage):
    """Make adversarial examples on `substitute`; white-box means that the target is the substitute."""

    kind: Literal["craft"] = "craft"
    substitute: str
    """Key of the train stage of the model the attacker owns."""
    attack: AnyAttack
    """The attack, with everything that changes its numbers."""
    limit: Count | None = None
    """Only the first `limit` test images; null is the whole test set."""

    def parents(self) -> tuple[str, ...]:
        """Return the substitute's key."""
        return (self.substitute,)

    def run(self, context: Context) -> Outcome:
        """Return float32 adversarial images, stored without loss."""
        import torch
        from safetensors.torch import save

        from core.evaluation import craft
        from core.portions import Portion

        spec, model, images, labels = loaded(context, self.substitute, self.execution, self.limit)
        portion = Portion.of_images(self.execution.device, context.log)
        adversarial = craft(
            self.attack, model, images, labels, self.execution,
            smoothing=spec.defense.label_smoothing, monitor=context.monitor, portion=portion,
        )  # fmt: skip
        distance = (adversarial - images.to(torch.float32) / 255).abs().amax().item()
        payload = {
            "n": len(labels),
            "max_distance": distance,
            "passes_per_example": self.attack.passes()._asdict(),
        }
        artifacts = {EXAMPLES: ("application/x-safetensors", save({EXAMPLES: adversarial}))}
        return Outcome(payload, artifacts, environment=micro_batch(portion.lowered))
