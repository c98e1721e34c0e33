"""Stage kind `evaluate`: one target shown one set of examples."""

from typing import Any, Literal

from core.fields import Count
from core.stages.base import Context, Outcome, Stage, micro_batch
from core.stages.craft import EXAMPLES, Craft
from core.stages.train import loaded

CORRECT = "correct"
PREDICTIONS = "predictions"


class Evaluate(Stage):
    """Show `examples`, or the clean test images, to `target`; the result is one bit per example."""

    kind: Literal["evaluate"] = "evaluate"
    target: str
    """Key of the train stage of the model under attack."""
    examples: str | None = None
    """Key of the craft stage; null is the clean test set."""
    limit: Count | None = None
    """Only the first `limit` test images; null is the whole test set."""

    def parents(self) -> tuple[str, ...]:
        """Return the keys of the target and, where there is one, of the craft stage."""
        return (self.target,) if self.examples is None else (self.target, self.examples)

    def run(self, context: Context) -> Outcome:
        """Return n, n_correct, the predicted labels and the per-example correctness bits."""
        from core.evaluation import correct_bits, predict
        from core.portions import Portion

        _, model, clean, labels = loaded(context, self.target, self.execution, self.limit)
        images = clean if self.examples is None else self._examples(context)
        portion = Portion.of_images(self.execution.device, context.log)
        predictions = predict(model, images, self.execution, portion=portion)
        correct = predictions == labels
        payload = {"n": len(labels), "n_correct": int(correct.sum())}
        return Outcome(
            payload,
            {
                CORRECT: ("application/octet-stream", correct_bits(predictions, labels)),
                PREDICTIONS: ("application/octet-stream", bytes(predictions.to("cpu").byte().tolist())),
            },
            environment=micro_batch(portion.lowered),
        )

    def _examples(self, context: Context) -> Any:
        from safetensors.torch import load

        crafted = context.parent(str(self.examples))
        if not isinstance(crafted.spec, Craft) or crafted.spec.limit != self.limit:
            raise TypeError(f"{self.examples} is no craft stage over the same images")
        return load(context.artifact(crafted.artifact(EXAMPLES)))[EXAMPLES]
