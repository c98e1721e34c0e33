"""Networks that images cannot pass: refused by the plan where arithmetic shows it, else before the first iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from core.datasets import DATASETS
from core.defenses.natural import Natural
from core.errors import SpecError
from core.layers import Conv, Dense, Layer
from core.networks.base import Network
from core.networks.mnist_cnn import MnistCnn
from core.plan import _network
from core.stages.train import Train
from core.training import Training

if TYPE_CHECKING:
    from torch import nn


class Impossible(Network):
    """A network of given rows, as an outside package might have it."""

    rows: ClassVar[tuple[Layer, ...]]
    input_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)

    def layers(self) -> tuple[Layer, ...]:
        return self.rows


class FlatFirst(Impossible):
    rows = (Dense(100), Conv(8, 3), Dense(10))


class NothingLeft(Impossible):
    rows = (Conv(8, 5, pool=8), Conv(8, 5), Dense(10))


class TwelveClasses(Impossible):
    rows = (Dense(12),)
    classes: ClassVar[int] = 12


class OtherLogits(Impossible):
    rows = (Dense(12),)


class ThrowsAway(Impossible):
    """Its own first layer changes what the rows were made for, which no table shows."""

    rows = (Dense(10),)

    def scaling(self) -> nn.Module:
        from torch import nn

        return nn.MaxPool2d(2)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (FlatFirst, "row 2 of the network is a convolution, but what enters it is flat: (100,)"),
        (NothingLeft, "row 2 of the network makes images of shape (8, 3, 3) into (8, -1, -1): nothing is left"),
        (TwelveClasses, "tells 12 classes apart, mnist-mini has 10"),
    ],
)
def test_the_plan_refuses(network: type[Network], says: str) -> None:
    with pytest.raises(SpecError) as refused:
        _network(network(), DATASETS["mnist-mini"](), ("defenses", 0))
    assert says in str(refused.value)
    assert refused.value.path == ("defenses", 0, "network")


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (ThrowsAway, "cannot take images of shape (1, 28, 28): a and b must have same reduction dim"),
        (OtherLogits, "gives (12,) for an image, not 10 logits"),
    ],
)
def test_the_stage_refuses(network: type[Network], says: str) -> None:
    """What the plan could not see fails the stage at once, with a sentence: torch's own error would be tried thrice."""
    ours = DATASETS["mnist-mini"]()
    train = Train(
        defense=Natural(), network=MnistCnn(), training=Training(iterations=1), dataset=ours.kind,
        dataset_sha256=ours.sha256,
    )  # fmt: skip
    with pytest.raises(SpecError) as refused:
        train.model_copy(update={"network": network()}).run(None)
    assert says in str(refused.value)
    assert refused.value.path == ("network",)
