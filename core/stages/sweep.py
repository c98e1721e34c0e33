"""Stage kind `sweep`: the accuracy of one model under one attack of growing radius."""

from typing import Literal

from core.fields import Count
from core.ranges import Radii, RadiusAttack
from core.stages.base import Context, Outcome, Stage, micro_batch
from core.stages.train import loaded


class Sweep(Stage):
    """Attack `target` with `attack` at every radius of `eps`; at 0 the images are clean."""

    kind: Literal["sweep"] = "sweep"
    target: str
    """Key of the train stage of the model under attack."""
    attack: RadiusAttack
    """The attack; its own eps is replaced by each of `eps`."""
    eps: Radii
    """Radii, in pixel units."""
    limit: Count | None = None
    """Only the first `limit` test images; null is the whole test set."""

    def parents(self) -> tuple[str, ...]:
        """Return the target's key."""
        return (self.target,)

    def run(self, context: Context) -> Outcome:
        """Return n, and the number classified correctly at every radius."""
        from core.evaluation import craft, predict
        from core.portions import Portion

        portion = Portion.of_images(self.execution.device, context.log)
        spec, model, images, labels = loaded(context, self.target, self.execution, self.limit)
        counts: list[int] = []
        for eps in self.eps:
            attack = type(self.attack).model_validate({**self.attack.model_dump(), "eps": eps})
            adversarial = images if eps == 0 else craft(
                attack, model, images, labels, self.execution,
                smoothing=spec.defense.label_smoothing, monitor=context.monitor, portion=portion,
            )  # fmt: skip
            counts.append(int((predict(model, adversarial, self.execution, portion) == labels).sum()))
        radii = self.model_dump(mode="json")["eps"]
        payload = {"dataset": spec.dataset, "n": len(labels), "eps": radii, "n_correct": counts}
        return Outcome(payload, environment=micro_batch(portion.lowered))
