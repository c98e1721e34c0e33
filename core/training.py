"""Training: one loop for every defense, repeatable to the last bit, resumable from any checkpoint.

The training set stays on the device as whole pixel values; batches are gathered and scaled there. On one device class
the weights are a pure function of the arguments: initialisation, data order and noise are derived from (mathematics,
seed) and the number of the iteration, never from a generator's state.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from core.canonical import derive_seed
from core.capture import Captured
from core.compute import configured, in_bfloat16, number_format, placed, unit_images
from core.defenses.base import Batch, Gradients, add_scaled
from core.errors import ArtifactCorrupt, Diverged, Interrupted, SpecError
from core.fields import Count, Number
from core.kinds import Spec
from core.losses import soft_targets
from core.monitor import UNWATCHED, Monitor
from core.portions import Portion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from core.defenses.base import Defense
    from core.execution import Execution
    from core.networks.base import Network

CURVE_POINTS = 200
"""Losses and accuracy are read about this often in a training: reading waits for the device."""
CLOSEST = 25
"""Iterations between two readings, at least: each costs a forward pass, so 1 % of natural training, less of others."""


BatchSize = Annotated[int, Field(strict=True, ge=1, le=65536)]
Optimiser = Literal["adam", "sgd"]
LearningRate = Annotated[Number, Field(gt=0, le=10)]
Momentum = Annotated[Number, Field(ge=0, lt=1)]
WeightDecay = Annotated[Number, Field(ge=0, le=1)]
Precision = Literal["float32", "tf32", "bf16"]


class Training(Spec):
    """The schedule: how long, in what batches, by which update rule."""

    iterations: Count
    """Optimiser steps."""
    batch_size: BatchSize = 256
    """Examples per step."""
    optimiser: Optimiser = "adam"
    """Update rule; the paper says Adam for SVHN and nothing for MNIST."""
    lr: LearningRate = 1e-3
    """Learning rate."""
    momentum: Momentum = 0.9
    """Momentum of sgd; adam has none."""
    weight_decay: WeightDecay = 0.0
    """L2 penalty added to the gradient, per unit of weight."""
    precision: Precision = "float32"
    """What the training's matrix products compute in; weights, losses and every evaluation are float32. tf32 needs a
    CUDA device and is float32 elsewhere."""

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Training:
        if self.optimiser == "adam" and self.momentum != type(self).model_fields["momentum"].default:
            raise ValueError("momentum only means something where optimiser is sgd")
        return self


@dataclass(frozen=True)
class Trained:
    """What a training leaves: weights on the CPU, losses and accuracy of some iterations, its time."""

    weights: dict[str, Tensor]
    curve: list[dict[str, float]]
    seconds: float
    """By the monitor's clock, over all attempts, without what an interruption lost and without the outages."""
    micro_batch: int | None = None
    """Examples at once, where memory did not allow the whole batch."""


def train(
    defense: Defense,
    network: Network,
    training: Training,
    execution: Execution,
    *,
    mathematics: str,
    seed: int,
    images: Tensor,
    labels: Tensor,
    resume: bytes | None = None,
    monitor: Monitor = UNWATCHED,
    micro_batch: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Return the network trained by `defense` on `images` (whole numbers, [N, C, H, W]) and `labels` ([N]).

    `mathematics` names everything but seed and execution; `resume` is a checkpoint of the same training, and the result
    is that of the undisturbed run, bit for bit.

    `micro_batch` bounds the examples that go through the network at once; the gradients of a batch's parts add up to
    its own, but for rounding. Where memory runs out it is halved, and `tell` hears of it. A defense that is not
    `additive` trains on whole batches or not at all.

    Raises:
        SpecError: `micro_batch` is given for a defense that is not additive.
        Diverged: a loss or a weight is NaN or infinite.
        OutOfMemory: the device cannot hold the passes of a single example; of a batch, where it cannot be parted.
        ArtifactCorrupt: `resume` is damaged or belongs to another training.
        Interrupted: the monitor said so; where the reason is "drain" a checkpoint has been saved.
    """
    with configured(execution, tf32=training.precision == "tf32"):
        loop = Loop(
            defense=defense,
            network=network,
            training=training,
            execution=execution,
            mathematics=mathematics,
            seed=seed,
            images=images,
            labels=labels,
            monitor=monitor,
            tell=tell,
        )
        if micro_batch is not None:
            loop.lower_to(micro_batch)
        if resume is not None:
            loop.restore(resume)
        return loop.to_the_end()


def load_model(network: Network, weights: Mapping[str, Tensor], execution: Execution) -> nn.Module:
    """Return the network with `weights`, ready to be evaluated or attacked as `execution` says.

    Raises:
        ArtifactCorrupt: the weights are not this network's.
    """
    model = network.blank()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactCorrupt(f"the weights do not fit the network {network.kind}: {error}") from error
    return placed(model, execution).requires_grad_(False)


def weights_to_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """Return the safetensors file of `weights`; equal weights give equal bytes."""
    from safetensors.torch import save

    return save({name: weight.detach().cpu().contiguous() for name, weight in weights.items()})


def weights_from_bytes(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        ArtifactCorrupt: it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactCorrupt(f"not a safetensors file: {error}") from error


@dataclass
class Order:
    """The data order: shuffled epochs, one after the other without a gap; a batch may straddle two.

    Every epoch is a permutation of its own, derived from (mathematics, seed, epoch), so the order is a pure function of
    the iteration and every image is shown equally often.
    """

    mathematics: str
    seed: int
    examples: int
    batch_size: int
    device: str
    _epochs: dict[int, Tensor] = field(default_factory=dict[int, "Tensor"])

    def __call__(self, iteration: int) -> Tensor:
        """Return the positions of the images of `iteration`."""
        import torch

        position, end = iteration * self.batch_size, (iteration + 1) * self.batch_size
        pieces: list[Tensor] = []
        while position < end:
            epoch, begin = divmod(position, self.examples)
            piece = self._epoch(epoch)[begin : begin + end - position]
            pieces.append(piece)
            position += len(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _epoch(self, epoch: int) -> Tensor:
        import torch

        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(derive_seed(self.mathematics, self.seed, "order", epoch))
            order = torch.randperm(self.examples, generator=generator)
            # pinned, so that the copy does not wait for what the device has yet to do
            order = order.pin_memory() if self.device == "cuda" else order
            self._epochs = {epoch: order.to(self.device, non_blocking=True)}
        return self._epochs[epoch]


class Loop:
    """A training under way: everything that changes from one iteration to the next.

    To be used as its execution is `configured`. Nothing in it refers back to it, so that it is gone, and with it what
    it holds on the device, as soon as nobody refers to it.
    """

    def __init__(
        self,
        *,
        defense: Defense,
        network: Network,
        training: Training,
        execution: Execution,
        mathematics: str,
        seed: int,
        images: Tensor,
        labels: Tensor,
        monitor: Monitor = UNWATCHED,
        tell: Callable[[str], None] = lambda line: None,
    ):
        size = training.batch_size
        self.portion = Portion(size, tell, least=1 if defense.additive else size)
        self.looked_at = Portion(size)
        self.defense, self.training, self.execution, self.monitor = defense, training, execution, monitor
        self.identity = {"mathematics": mathematics, "seed": seed, "execution": execution.model_dump()}
        self.images, self.labels = images.to(execution.device), labels.to(execution.device)
        self.targets = soft_targets(self.labels, network.classes, defense.label_smoothing, number_format(execution))
        self.order = Order(mathematics, seed, len(images), training.batch_size, execution.device)
        self.noise_seed = derive_seed(mathematics, seed, "noise")
        self.model = placed(network.build(derive_seed(mathematics, seed, "init")), execution).train()
        self.called = in_bfloat16(self.model) if training.precision == "bf16" else self.model
        self.params = list(self.model.parameters())
        self.optimiser = _optimiser(training, self.params)
        self.captured = Captured(size, self.portion) if execution.captured else None
        self.curve: list[dict[str, float]] = []
        self.iteration = 0
        """Number of finished iterations."""
        self.began = monitor.clock()
        """On the monitor's clock, as if all attempts had followed one another."""

    def to_the_end(self) -> Trained:
        """Return the finished training; what may stop it is said at `train`."""
        try:
            while self.iteration < self.training.iterations:
                self.monitor.check()
                self._record(self.advance())
                if self.monitor.wants_checkpoint():
                    self.monitor.save_checkpoint(self.checkpoint())
        except Interrupted as interruption:
            if interruption.reason == "drain":
                self.monitor.save_checkpoint(self.checkpoint())
            raise
        weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        for name, weight in weights.items():
            if not bool(weight.isfinite().all()):
                raise Diverged(f"training diverged: the weight {name} is not finite after the last iteration")
        return Trained(weights, self.curve, self.monitor.clock() - self.began, self.portion.lowered)

    def advance(self) -> dict[str, Tensor]:
        """Return the losses of one further iteration; on CUDA nothing here waits for that to have run."""
        indices = self.order(self.iteration)
        if self.captured is None:
            losses = self._iterate(indices, self.iteration)
        else:
            losses = self.captured(self._iterate, indices, self.iteration)
        self.iteration += 1
        return losses

    def lower_to(self, micro_batch: int) -> None:
        """Let no more examples through the network at once.

        Raises:
            SpecError: the defense needs the whole batch.
        """
        if not self.defense.additive:
            raise SpecError(f"micro_batch: {self.defense.label()} does not add up over parts of a batch; leave it out")
        self.portion.lower_to(micro_batch)

    def _iterate(self, indices: Tensor, iteration: int | Tensor) -> dict[str, Tensor]:
        """Train on one batch and return its losses; all of it is work for the device that nothing here waits for."""
        gradients = self.portion.fit(lambda size: self._gradients(indices, iteration, size), len(indices))
        for weight, gradient in zip(self.params, gradients.weights, strict=True):
            weight.grad = gradient
        self.optimiser.step()
        return gradients.losses

    def _gradients(self, indices: Tensor, iteration: int | Tensor, size: int) -> Gradients:
        """Return the batch's gradients from parts of it, each weighted by its share: its losses are means."""
        first, *others = indices.split(size)
        found = self.defense.gradients(self._batch(first, iteration))
        if not others:
            return found
        share = len(first) / len(indices)
        weights = [weight * share for weight in found.weights]
        losses = {name: loss * share for name, loss in found.losses.items()}
        for part in others:
            share, found = len(part) / len(indices), self.defense.gradients(self._batch(part, iteration))
            add_scaled(weights, found.weights, share)
            losses = {name: loss + found.losses[name] * share for name, loss in losses.items()}
        return Gradients(weights, losses)

    def _batch(self, indices: Tensor, iteration: int | Tensor) -> Batch:
        return Batch(
            model=self.called,
            params=self.params,
            images=unit_images(self.images[indices], self.execution),
            labels=self.labels[indices],
            targets=self.targets[indices],
            indices=indices,
            iteration=iteration,
            seed=self.noise_seed,
            monitor=self.monitor,
        )

    def _record(self, losses: dict[str, Tensor]) -> None:
        total = self.training.iterations
        if self.iteration % max(CLOSEST, total // CURVE_POINTS) != 0 and self.iteration not in {1, total}:
            self.monitor.progress(self.iteration, total)
            return
        figures = {name: loss.item() for name, loss in losses.items()}
        for name, value in figures.items():
            if not isfinite(value):
                raise Diverged(
                    f"training diverged: the {name} loss is {value} at iteration {self.iteration} of {total}; "
                    f"a learning rate below {self.training.lr} may help"
                )
        self.curve.append({"iteration": self.iteration, **figures, "accuracy": self._accuracy()})
        self.monitor.progress(self.iteration, total, **figures)

    def _accuracy(self) -> float:
        """Return the share of the next batch's clean images that is classified correctly, before training on them."""
        import torch

        indices = self.order(self.iteration)

        def predicted(size: int) -> Tensor:
            parts = indices.split(size)
            return torch.cat([self.model(unit_images(self.images[part], self.execution)).argmax(1) for part in parts])

        self.looked_at.lower_to(self.portion.size)
        self.model.eval()  # to look at it leaves a network with running statistics as it is
        try:
            with torch.no_grad():
                found = self.looked_at.fit(predicted, len(indices))
        finally:
            self.model.train()
        return (found == self.labels[indices]).double().mean().item()

    def checkpoint(self) -> bytes:
        """Return everything that `restore` needs, as a safetensors file."""
        from safetensors.torch import save

        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, weight in enumerate(self.params):
            tensors |= {f"optimiser.{number}.{key}": value for key, value in self.optimiser.state[weight].items()}
        state = json.dumps(
            {
                **self.identity, "iteration": self.iteration, "curve": self.curve, "micro_batch": self.portion.size,
                "seconds": self.monitor.clock() - self.began,
            }
        )  # fmt: skip
        return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"state": state})

    def restore(self, data: bytes) -> None:
        """Continue from a checkpoint.

        Raises:
            ArtifactCorrupt: it is damaged or belongs to another training.
        """
        tensors, state = weights_from_bytes(data), _state(data)
        if {key: state.get(key) for key in self.identity} != self.identity:
            raise ArtifactCorrupt("the checkpoint belongs to another training")
        try:
            prefix = "model."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            self.model.load_state_dict(own)
            for name, value in tensors.items():
                if not name.startswith(prefix):
                    _, number, key = name.split(".")
                    weight = self.params[int(number)]
                    self.optimiser.state[weight][key] = _like(weight, value)
            self.iteration, self.curve = int(state["iteration"]), list(state["curve"])
            self.began = self.monitor.clock() - float(state.get("seconds", 0.0))
            self.portion.lower_to(int(state.get("micro_batch", self.portion.size)))
        except (RuntimeError, KeyError, IndexError, ValueError, TypeError) as error:
            raise ArtifactCorrupt(f"the checkpoint does not fit this training: {error}") from error


def _state(data: bytes) -> dict[str, Any]:
    """Return what a checkpoint's header says; the tensors have been read, so the header is whole."""
    try:
        length = int.from_bytes(data[:8], "little")
        return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    except (ValueError, KeyError) as error:
        raise ArtifactCorrupt(f"the checkpoint's header is damaged: {error}") from error


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """Return optimiser state on the weight's device and, but for the step counter, in the weight's layout."""
    import torch

    return value.to(weight.device) if value.ndim == 0 else torch.empty_like(weight).copy_(value)


def _optimiser(training: Training, params: Sequence[Tensor]) -> torch.optim.Optimizer:
    import torch

    if training.optimiser == "adam":
        on_cuda = params[0].is_cuda
        return torch.optim.Adam(
            params, lr=training.lr, weight_decay=training.weight_decay, fused=True, capturable=on_cuda
        )
    return torch.optim.SGD(
        params, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay, fused=True
    )
