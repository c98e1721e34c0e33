"""Stage kind `train`: one defense trained once."""

import json
from typing import TYPE_CHECKING, Any, Literal

from core.canonical import digest
from core.datasets import DATASETS
from core.defenses import AnyDefense
from core.errors import ArtifactCorrupt, OtherCode
from core.execution import Execution
from core.fields import Seed
from core.networks import AnyNetwork
from core.stages.base import Context, Outcome, Stage, micro_batch
from core.training import Training

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "weights"
CURVE = "curve"


class Train(Stage):
    """Train `defense` on `dataset`; the result is the weights and the loss curve."""

    version = 2  # 2: initialisation and order no longer derive from the execution
    kind: Literal["train"] = "train"
    defense: AnyDefense
    """The recipe against adversarial examples."""
    network: AnyNetwork
    """The architecture."""
    training: Training
    """The schedule."""
    dataset: str
    """Name of the dataset."""
    dataset_sha256: str
    """sha256 over the dataset's published checksums."""
    seed: Seed = 0
    """Initialisation, data order and noise derive from it and from `mathematics`."""

    @property
    def recipe(self) -> str:
        """The key without the seed: what a row or a column of a matrix is."""
        return digest({name: value for name, value in self.canonical().items() if name != "seed"})

    @property
    def mathematics(self) -> str:
        """The recipe without its execution: one seed starts from the same weights and order on every device."""
        return digest({name: value for name, value in self.canonical().items() if name not in ("seed", "execution")})

    @property
    def flop(self) -> float:
        """Floating-point operations of the whole training, by the defense's own count of passes."""
        examples = self.training.iterations * self.training.batch_size
        return self.defense.passes().units * self.network.flop * examples

    def run(self, context: Context) -> Outcome:
        """Return weights and curve, from the newest sound checkpoint where there is one."""
        from core.training import train, weights_to_bytes

        if self.dataset not in DATASETS or DATASETS[self.dataset]().sha256 != self.dataset_sha256:
            raise OtherCode(f"dataset {self.dataset} is not known here with the files that this job was planned for")
        data = context.dataset(self.dataset)

        def attempt(resume: bytes | None) -> Any:
            return train(
                self.defense, self.network, self.training, self.execution, recipe=self.mathematics, seed=self.seed,
                images=data.train_images, labels=data.train_labels, resume=resume, monitor=context.monitor,
                tell=context.log,
            )  # fmt: skip

        trained = _from_newest(context, attempt)
        last = trained.curve[-1] if trained.curve else {}
        payload = {
            "iterations": self.training.iterations,
            "last_losses": last,
            "passes_per_example": self.defense.passes()._asdict(),
        }
        curve = json.dumps(trained.curve).encode()
        weights = weights_to_bytes(trained.weights)
        artifacts = {WEIGHTS: ("application/x-safetensors", weights), CURVE: ("application/json", curve)}
        return Outcome(payload, artifacts, trained.seconds, micro_batch(trained.micro_batch))


def loaded(context: Context, key: str, execution: Execution) -> "tuple[Train, nn.Module]":
    """Return the spec and the model of the finished train stage `key`, ready to be looked at as `execution` says."""
    from core.training import load_model, weights_from_bytes

    found = context.parent(key)
    if not isinstance(found.spec, Train):
        raise TypeError(f"{key} is no train stage")
    weights = weights_from_bytes(context.artifact(found.artifacts[WEIGHTS]))
    return found.spec, load_model(found.spec.network, weights, execution)


def _from_newest(context: Context, attempt: Any) -> Any:
    for checkpoint in context.checkpoints():
        try:
            return attempt(checkpoint)
        except ArtifactCorrupt as torn:
            context.log(f"checkpoint unusable, falling back to the one before: {torn}")
    return attempt(None)
