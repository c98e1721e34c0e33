"""Learning with a strong adversary: the nearest boundary of a linear model, by hand; rivals; no NaN."""

import pytest
import torch
from torch import nn

from core.defenses.base import Batch
from core.defenses.strong_adversary import StrongAdversary
from core.losses import cross_entropy, soft_targets
from core.passes import Passes
from tests.core.small import small, tiny_model
from tests.core.test_defenses import batch_of

GOLDEN = {
    "defenses/strong_adversary@1": {
        "losses": [1.411412861188492],
        "0.weight": [1.2494811490871924, -0.8059719811306942, -0.7448283871171095],
        "0.bias": [-0.3181546123917527, -0.3729738750150664, 0.03498075058383386],
        "3.weight": [0.049410527825656025, 0.17430147962462567, -0.21069022661704917],
        "3.bias": [-0.4837349608043793, 0.04890209945991807, -0.08356664619722938],
        "7.weight": [-2.2263659377820018, 1.229905870011808, -2.115363525792514],
        "7.bias": [0.10405729904936406, 0.053666705121956204, -0.05099166752444598],
        "9.weight": [-1.1299607112183998, -1.9136207872331685, 2.0206754333334382],
        "9.bias": [-0.37901503974615963, -0.2721407496458606, 0.33485707951778154],
    },
    "defenses/strong_adversary@1 clip=False": {
        "losses": [1.4125220759199397],
        "0.weight": [1.247440360307823, -0.7942894352742421, -0.7514810277408203],
        "0.bias": [-0.3191194179223548, -0.3733624674514903, 0.034652919126100176],
        "3.weight": [0.021712561492852833, 0.1877088605947394, -0.22930233487604224],
        "3.bias": [-0.48183187398758504, 0.05111232029494514, -0.08252408948972079],
        "7.weight": [-2.2500522952744175, 1.2349719810433994, -2.1136147223117407],
        "7.bias": [0.1067970367677441, 0.051459073578151826, -0.05235849243325141],
        "9.weight": [-1.1306816998268774, -1.9192790565537203, 2.028761458754214],
        "9.bias": [-0.37900520003459665, -0.27211308146202073, 0.33485747599068955],
    },
}


def linear() -> Batch:
    """z = W x with three classes over two pixels; at x class 2 has the larger logit, class 1 is nearer."""
    layer = nn.Linear(2, 3, bias=False).double()
    layer.weight.data = torch.tensor([[0.0, 0.0], [-2.0, -2.0], [-3.0, 0.0]], dtype=torch.float64)
    return Batch(
        model=nn.Sequential(nn.Flatten(), layer), params=[layer.weight],
        images=torch.tensor([[0.7, 0.5]], dtype=torch.float64).view(1, 1, 1, 2), labels=torch.tensor([0]),
        targets=soft_targets(torch.tensor([0]), 3, 0.0, torch.float64), indices=torch.tensor([0]), iteration=0, seed=0,
    )  # fmt: skip


def test_it_steps_towards_the_nearest_boundary_not_the_largest_rival():
    """Distances in the largest pixel's change: class 1 at 2.4 / 4 = .6, class 2 at 2.1 / 3 = .7; Euclid's differ."""
    batch = linear()
    expected = torch.tensor([[[[0.6, 0.4]]]], dtype=torch.float64)
    loss = cross_entropy(batch.model(expected), batch.targets).mean().item()
    assert StrongAdversary(eps="0.1").gradients(batch).losses["loss"].item() == pytest.approx(loss, rel=1e-12)


def test_with_one_rival_it_is_the_one_of_the_largest_logit():
    batch = linear()
    expected = torch.tensor([[[[0.6, 0.5]]]], dtype=torch.float64)
    loss = cross_entropy(batch.model(expected), batch.targets).mean().item()
    found = StrongAdversary(eps="0.1", rivals=1).gradients(batch)
    assert found.losses["loss"].item() == pytest.approx(loss, rel=1e-12)


def test_more_rivals_than_wrong_classes_are_all_of_them():
    batch = linear()
    all_, both = (StrongAdversary(rivals=rivals).gradients(batch).weights[0] for rivals in (9, 2))
    assert torch.equal(all_, both)


def test_it_fools_more_than_a_random_step_of_its_length():
    model = tiny_model()
    defense = small(StrongAdversary)
    batch = batch_of(defense, model, n=32)
    loss = defense.gradients(batch).losses["loss"]
    signs = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sign()
    assert loss > batch.losses(model((batch.images + 0.3 * signs).clamp(0, 1))).mean()


def test_a_model_that_looks_at_nothing_leaves_the_images_where_they_are():
    model = tiny_model()
    for weight in model.parameters():
        weight.data.zero_()
    batch = batch_of(StrongAdversary(), model)
    found = StrongAdversary().gradients(batch)
    assert found.losses["loss"].item() == pytest.approx(batch.losses(model(batch.images)).mean().item())
    assert all(bool(weight.isfinite().all()) for weight in found.weights)


def test_cost():
    assert StrongAdversary().passes() == Passes(forward=2, input_backward=9, full_backward=1)
    assert StrongAdversary().passes().units == 13
