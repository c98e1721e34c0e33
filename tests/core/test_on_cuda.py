"""Attacks, predictions and surfaces on CUDA are those of the CPU: float64, where signs agree."""

import pytest
import torch

from core.attacks import ATTACKS
from core.attacks.ifgsm import IFGSM
from core.evaluation import craft, predict
from core.execution import Execution
from core.networks import NETWORKS
from core.networks.base import Network
from core.surfaces import Plane, grid
from core.training import load_model
from tests.core.small import TinyNet, small, tiny_pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
HERE = Execution(threads=1, precision="float64", layout="contiguous")
THERE = HERE.model_copy(update={"device": "cuda"})
BOTH = (HERE, THERE)


def on(execution: Execution, network: Network | None = None) -> torch.nn.Module:
    network = network or TinyNet()
    return load_model(network, network.build(0).state_dict(), execution)


@pytest.mark.parametrize("loss", ["label", "training"])
@pytest.mark.parametrize("kind", sorted(ATTACKS))
def test_the_examples_of_every_attack(kind: str, loss: str) -> None:
    fields = {"loss": loss} if "loss" in ATTACKS[kind].model_fields else {}
    attack = small(ATTACKS[kind], **fields)
    images, labels = tiny_pixels(40)
    here, there = (craft(attack, on(one), images, labels, one, smoothing=0.25) for one in BOTH)
    assert (here - there).abs().max() < 1e-6


def test_the_worst_of_several_restarts() -> None:
    attack = small(ATTACKS["pgd"], restarts=3)
    images, labels = tiny_pixels(40)
    here, there = (craft(attack, on(one), images, labels, one) for one in BOTH)
    assert (here - there).abs().max() < 1e-6


@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_the_predictions_of_the_papers_networks(kind: str) -> None:
    network = NETWORKS[kind]()
    images = torch.randint(
        256, (50, *network.input_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    here, there = (predict(on(one, network), images, one) for one in BOTH)
    assert torch.equal(here, there)


def test_a_surface() -> None:
    images, labels = tiny_pixels(40)
    plane = Plane(IFGSM(eps=0.3, steps=3), (0.0, 0.1, 0.3), through_second=False, clip=True, seed=0)
    here, there = (grid(on(one), images, labels, plane, None, one) for one in BOTH)
    assert (torch.tensor(there.loss) - torch.tensor(here.loss)).abs().max() < 1e-9
    assert there.accuracy == here.accuracy
