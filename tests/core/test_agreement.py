"""Attacks and losses against plain numpy: float64 to 1e-9 through all steps, float32 gradients to 1e-6 at given points.

The paper's own two networks, every example for itself.
"""

import numpy as np
import pytest
import torch

from core import losses
from core.attacks import Attack
from core.attacks.base import Oracle
from core.attacks.fgsm import FGSM
from core.attacks.ifgsm import IFGSM
from core.attacks.mifgsm import MIFGSM
from core.attacks.pgd import PGD
from core.networks.mnist_cnn import MnistCnn
from core.networks.svhn_cnn import SvhnCnn
from core.random import fold, uniform
from tests.core import plain

NETWORKS = pytest.mark.parametrize(
    "network", [MnistCnn(), pytest.param(SvhnCnn(), marks=pytest.mark.slow)], ids=lambda network: network.kind
)
N = 2


def given(network, dtype=torch.float64) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    images = uniform(5, 0, torch.arange(N), network.input_shape, torch.float64)
    return network.build(0).to(dtype), images.to(dtype), torch.tensor([3, 7])


@NETWORKS
def test_logits(network):
    module, images, _ = given(network)
    expected = plain.PlainNetwork(network, module)(images.numpy())
    assert np.abs(module(images).detach().numpy() - expected).max() < 1e-12


RUNS = [
    (FGSM(eps="0.3"), {"eps": 0.3, "step_size": 0.3, "steps": 1}),
    (FGSM(eps="24/255", loss="training"), {"eps": 24 / 255, "step_size": 24 / 255, "steps": 1}),
    (IFGSM(eps="0.3", steps=30), {"eps": 0.3, "step_size": 0.01, "steps": 30}),
    (IFGSM(eps="24/255", steps=10, loss="training"), {"eps": 24 / 255, "step_size": 24 / 2550, "steps": 10}),
    (PGD(eps="0.1", steps=15), {"eps": 0.1, "step_size": 0.01, "steps": 15}),
    (PGD(eps="0.1", steps=12, step_size="0.02", random_start=False), {"eps": 0.1, "step_size": 0.02, "steps": 12}),
    (MIFGSM(eps="0.3", steps=10, decay=0.9), {"eps": 0.3, "step_size": 0.03, "steps": 10, "decay": 0.9}),
]


@NETWORKS
@pytest.mark.parametrize(
    ("attack", "numbers"), RUNS, ids=lambda value: value.label() if isinstance(value, Attack) else ""
)
def test_every_attack_through_all_its_steps(network, attack, numbers):
    module, images, labels = given(network)
    start = 0.0
    if getattr(attack, "random_start", False):
        draws = uniform(attack.seed, fold(0, 0), torch.arange(N), network.input_shape, torch.float64)
        start = numbers["eps"] * (2 * draws.numpy() - 1)
    targets = plain.soft_targets(labels.numpy(), 10, 0.25 if attack.loss == "training" else 0.0)
    expected = plain.attack(
        plain.PlainNetwork(network, module), images.numpy(), lambda logits: plain.cross_entropy(logits, targets),
        start=start, **numbers,
    )  # fmt: skip
    found = attack(module, images, labels, smoothing=0.25).numpy()
    assert np.abs(found - images.numpy()).max() > 0.9 * numbers["eps"]
    assert np.abs(found - expected).max() < 1e-9


@NETWORKS
def test_the_worst_of_several_restarts(network):
    """Per example the run whose end leads the true class most, each run and each lead worked out in numpy."""
    module, images, labels = given(network)
    by_hand, runs, leads = plain.PlainNetwork(network, module), [], []
    targets = plain.soft_targets(labels.numpy(), 10, 0.0)
    for restart in range(4):
        draws = uniform(0, fold(0, restart), torch.arange(N), network.input_shape, torch.float64).numpy()
        run = plain.attack(
            by_hand, images.numpy(), lambda logits: plain.cross_entropy(logits, targets),
            eps=0.05, step_size=0.02, steps=2, start=0.05 * (2 * draws - 1),
        )  # fmt: skip
        logits, truth = by_hand(run), targets.astype(bool)
        runs.append(run)
        leads.append(np.where(truth, -np.inf, logits).max(1) - logits[truth])
    best = np.argmax(leads, axis=0)
    expected = np.stack([runs[run][example] for example, run in enumerate(best)])
    found = PGD(eps="0.05", step_size="0.02", steps=2, restarts=4)(module, images, labels)
    assert np.abs(found.numpy() - expected).max() < 1e-9


@NETWORKS
@pytest.mark.parametrize("delta", [0.0, 0.25])
def test_float32_gradients_of_the_loss_at_given_points(network, delta):
    module, images, labels = given(network, torch.float32)
    targets = plain.soft_targets(labels.numpy(), 10, delta)
    by_hand = plain.PlainNetwork(network, module)
    for points in (images, (images + 0.3 * images.round()).clamp(0, 1)):
        oracle = Oracle(
            model=module, labels=labels, indices=torch.arange(N),
            loss=lambda logits: losses.cross_entropy(logits, losses.soft_targets(labels, 10, delta, torch.float32)),
        )  # fmt: skip
        found = oracle.gradient(points).double().numpy()
        expected = by_hand.gradient(points.double().numpy(), lambda logits: plain.cross_entropy(logits, targets))
        assert np.abs(expected).max() > 1e-4
        assert np.abs(found - expected).max() < 1e-6


@NETWORKS
def test_float32_gradients_of_the_entropy_at_given_points(network):
    """What e2SAD's second step climbs."""
    module, images, _ = given(network, torch.float32)
    images.requires_grad_()
    found = torch.autograd.grad(losses.entropy(module(images)).sum(), images)[0].double().numpy()
    expected = plain.PlainNetwork(network, module).gradient(images.detach().double().numpy(), plain.entropy)
    assert np.abs(expected).max() > 1e-6
    assert np.abs(found - expected).max() < 1e-6


def test_losses_per_example():
    logits = np.random.default_rng(0).normal(0, 4, (50, 10))
    labels = np.arange(50) % 10
    for delta in (0.0, 0.1, 0.25):
        targets = plain.soft_targets(labels, 10, delta)
        ours = losses.soft_targets(torch.tensor(labels), 10, delta, torch.float64)
        assert np.abs(ours.numpy() - targets).max() < 1e-15
        found = losses.cross_entropy(torch.tensor(logits), ours).numpy()
        assert np.abs(found - plain.cross_entropy(logits, targets)[0]).max() < 1e-12
    other = np.random.default_rng(1).normal(0, 4, (50, 10))
    found = losses.dissimilarity(torch.tensor(logits), torch.tensor(other)).numpy()
    expected = -(plain.softmax(logits) * np.log(plain.softmax(other))).sum(1)
    assert np.abs(found - expected).max() < 1e-11
    assert np.abs(losses.entropy(torch.tensor(logits)).numpy() - plain.entropy(logits)[0]).max() < 1e-12
