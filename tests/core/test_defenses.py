"""Defenses: gradients equal to the naive form, cost equal to what is said, e2SAD against values worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from core.attacks.fgsm import FGSM
from core.compute import in_bfloat16
from core.defenses import DEFENSES
from core.defenses.base import Batch
from core.defenses.e2sad import E2SAD
from core.defenses.fgsm_adv import FgsmTraining
from core.defenses.ifgsm_adv import IfgsmTraining
from core.defenses.natural import Natural
from core.defenses.pgd_minmax import PgdMinmax
from core.defenses.strong_adversary import StrongAdversary
from core.errors import Interrupted
from core.losses import cross_entropy, dissimilarity, entropy, lead, soft_targets
from core.passes import Passes
from core.surfaces import two_steps
from tests.core import naive
from tests.core.counting import CountPasses
from tests.core.small import Recording, small, tiny_images, tiny_model

VARIANTS = [
    *(small(cls) for cls in DEFENSES.values()),
    *(small(cls, label_smoothing=0.1) for cls in DEFENSES.values()),
    *(
        small(DEFENSES[kind], alpha=alpha)
        for kind in ("fgsm_adv", "ifgsm_adv", "e2sad", "hamm_minimax")
        for alpha in (0, 1)
    ),
    IfgsmTraining(steps=1),
    IfgsmTraining(steps=3, clip=False),
    FgsmTraining(clip=False, eps="0.05"),
    PgdMinmax(steps=3, step_size="0.1", random_start=False),
    PgdMinmax(steps=3, clip=False),
    E2SAD(label_smoothing=0),
    E2SAD(clip=False),
    E2SAD(detach_target=True),
    E2SAD(detach_target=True, alpha=1),
    E2SAD(dissimilarity_weight=0),
    E2SAD(dissimilarity_weight=0, alpha=0),
    E2SAD(dissimilarity_weight=0, alpha=1),
    E2SAD(second_step="noise"),
    E2SAD(second_step="noise", sigma=0.1, alpha=0),
    E2SAD(second_step="uniform"),
    E2SAD(second_step="vat"),
    E2SAD(second_step="vat", power_iterations=3, xi=1.0),
]
LITERAL = E2SAD(second_step="literal")
"""Its second step is the sign of rounding noise, so no two forms of it agree."""


def named(defense) -> str:
    return defense.label()


def batch_of(defense, model: nn.Module, n: int = 8, monitor=None) -> Batch:
    images, labels = tiny_images(n)
    return Batch(
        model=model,
        params=list(model.parameters()),
        images=images,
        labels=labels,
        targets=soft_targets(labels, 4, defense.label_smoothing, torch.float64),
        indices=torch.arange(n) + 3,
        iteration=11,
        seed=2**40 + 1,
        monitor=monitor or Recording(),
    )


def split_gradients(defense, batch: Batch) -> list[torch.Tensor]:
    """Return the weight gradients of the batch's first five examples and of the others, each by its share."""
    total = [torch.zeros_like(weight) for weight in batch.params]
    for chosen in torch.arange(len(batch.images)).split(5):
        names = ("images", "labels", "targets", "indices")
        part = replace(batch, **{name: getattr(batch, name)[chosen] for name in names})
        for weight, gradient in zip(total, defense.gradients(part).weights, strict=True):
            weight.add_(gradient, alpha=len(chosen) / len(batch.images))
    return total


@pytest.mark.parametrize("defense", [one for one in VARIANTS if one.additive], ids=named)
def test_gradients_of_an_additive_defense_add_up_over_parts_of_a_batch(defense):
    batch = batch_of(defense, tiny_model())
    for whole, parts in zip(defense.gradients(batch).weights, split_gradients(defense, batch), strict=True):
        assert torch.allclose(whole, parts, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("defense", VARIANTS, ids=named)
def test_shared_gradients_equal_the_naive_ones(defense):
    if defense.kind not in naive.LOSSES:
        pytest.fail(f"write the naive form of {defense.kind} into tests/core/naive.py")
    model = tiny_model()
    batch = batch_of(defense, model)
    found = defense.gradients(batch)
    arguments = (model, defense, batch.images, batch.targets, batch.indices, batch.seed, batch.iteration)
    loss = naive.LOSSES[defense.kind](*arguments)
    model.zero_grad()
    loss.backward()
    assert found.losses["loss"].item() == pytest.approx(loss.item(), abs=1e-12)
    for gradient, weight in zip(found.weights, model.parameters(), strict=True):
        assert gradient.abs().max() > 1e-4
        assert (gradient - weight.grad).abs().max() < 1e-9
    assert not any(figure.requires_grad for figure in found.losses.values())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("defense", [*VARIANTS, LITERAL], ids=named)
def test_gradients_lie_in_memory_as_the_weights_do(defense, layout):
    """The fused optimisers do not look at strides: a transposed gradient would be taken for another one."""
    model = tiny_model().to(memory_format=layout)
    batch = batch_of(defense, model)
    for gradient, weight in zip(defense.gradients(batch).weights, batch.params, strict=True):
        sizes = zip(gradient.stride(), weight.stride(), weight.shape, strict=True)
        assert all(ours == theirs for ours, theirs, size in sizes if size > 1)


@pytest.mark.parametrize("defense", [*VARIANTS, LITERAL], ids=named)
def test_it_costs_what_it_says(defense):
    model = tiny_model()
    with CountPasses(8) as counted:
        defense.gradients(batch_of(defense, model))
    assert counted.passes == defense.passes()


@pytest.mark.parametrize(
    ("defense", "units", "signs"),
    [
        (Natural(), 3, 0),
        (FgsmTraining(), 6, 1),
        (FgsmTraining(alpha=0), 5, 1),
        (FgsmTraining(alpha=1), 3, 0),
        (IfgsmTraining(), 64, 30),
        (PgdMinmax(steps=5), 13, 5),
        (E2SAD(), 10, 2),
        (LITERAL, 10, 2),
        (E2SAD(second_step="noise"), 11, 2),
        (E2SAD(second_step="uniform"), 11, 2),
        (E2SAD(second_step="vat"), 11, 2),
        (E2SAD(second_step="vat", power_iterations=3), 15, 4),
        (E2SAD(dissimilarity_weight=0), 6, 1),
    ],
    ids=lambda value: value.label() if hasattr(value, "label") else str(value),
)
def test_the_minimal_number_of_passes(defense, units, signs):
    """Issue 3's arithmetic; and no pass computes the gradient of an image that nobody takes the sign of."""
    assert defense.passes().units == units
    with CountPasses(8) as counted:
        defense.gradients(batch_of(defense, tiny_model()))
    assert counted.first_layer == signs


@pytest.mark.parametrize(
    "defense",
    [IfgsmTraining(steps=50), PgdMinmax(steps=50), E2SAD(second_step="vat", power_iterations=50), StrongAdversary()],
    ids=named,
)
def test_it_stops_between_two_attack_steps(defense):
    monitor = Recording(stop_at=3, reason="cancelled")
    with CountPasses(8) as counted, pytest.raises(Interrupted):
        defense.gradients(batch_of(defense, tiny_model(), monitor=monitor))
    assert counted.passes.forward <= 3


def test_noise_is_new_in_every_iteration():
    model = tiny_model()
    for defense in (PgdMinmax(steps=1), E2SAD(second_step="uniform")):
        batch = batch_of(defense, model)
        later = Batch(**{**batch.__dict__, "iteration": 12})
        replayed = Batch(**{**batch.__dict__, "iteration": torch.tensor(11)})
        first, second, third = (defense.gradients(each).weights[0] for each in (batch, later, replayed))
        assert not torch.equal(first, second)
        assert torch.equal(first, third)


class TestE2sadByHand:
    """A linear model, where every step of Algorithm 1 has a formula: z = W x, dJ/dz = p - t."""

    weights = np.random.default_rng(0).normal(size=(4, 12))
    x = np.random.default_rng(1).uniform(size=(5, 12))
    labels = np.array([0, 1, 2, 3, 1])
    targets = np.where(np.eye(4)[labels] == 1, 0.75, 0.25 / 3)

    def batch(self) -> Batch:
        layer = nn.Linear(12, 4, bias=False).double()
        layer.weight.data = torch.tensor(self.weights)
        return Batch(
            model=nn.Sequential(nn.Flatten(), layer),
            params=[layer.weight],
            images=torch.tensor(self.x).reshape(5, 3, 2, 2),
            labels=torch.tensor(self.labels),
            targets=torch.tensor(self.targets),
            indices=torch.arange(5),
            iteration=0,
            seed=0,
        )

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        exponentials = np.exp(x @ self.weights.T)
        return exponentials / exponentials.sum(1, keepdims=True)

    def steps(self, eps1: float, eps2: float) -> tuple[np.ndarray, np.ndarray]:
        """Eq. 6, and eq. 7 in the reading `entropy`: dH/dz_k = -p_k (log p_k + H)."""
        x1 = np.clip(self.x + eps1 * np.sign((self.probabilities(self.x) - self.targets) @ self.weights), 0, 1)
        p1 = self.probabilities(x1)
        entropy1 = -(p1 * np.log(p1)).sum(1, keepdims=True)
        x2 = np.clip(x1 + eps2 * np.sign(-p1 * (np.log(p1) + entropy1) @ self.weights), 0, 1)
        return x1, x2

    def test_loss_and_gradient(self):
        found = E2SAD(alpha=0.7, dissimilarity_weight=0.3, eps1="0.2", eps2="0.05").gradients(self.batch())
        x1, x2 = self.steps(0.2, 0.05)
        p, p1, p2 = (self.probabilities(points) for points in (self.x, x1, x2))
        clean, adversarial = (-(self.targets * np.log(q)).sum(1).mean() for q in (p, p1))
        each = -(p1 * np.log(p2)).sum(1, keepdims=True)
        assert found.losses["clean"].item() == pytest.approx(clean, abs=1e-12)
        assert found.losses["adversarial"].item() == pytest.approx(adversarial, abs=1e-12)
        assert found.losses["dissimilarity"].item() == pytest.approx(each.mean(), abs=1e-12)
        total = 0.7 * clean + 0.3 * adversarial + 0.3 * each.mean()
        assert found.losses["loss"].item() == pytest.approx(total, abs=1e-12)
        through_x1 = p1 * (-np.log(p2) - each)
        gradient = (
            0.7 * (p - self.targets).T @ self.x
            + 0.3 * (p1 - self.targets).T @ x1
            + 0.3 * ((p2 - p1).T @ x2 + through_x1.T @ x1)
        ) / 5
        assert np.abs(found.weights[0].numpy() - gradient).max() < 1e-12

    def test_without_gradients_through_the_target(self):
        free, held = (
            E2SAD(detach_target=detach, alpha=1, dissimilarity_weight=1).gradients(self.batch()).weights[0].numpy()
            for detach in (False, True)
        )
        x1, x2 = self.steps(0.3, 0.1)
        p1, p2 = self.probabilities(x1), self.probabilities(x2)
        each = -(p1 * np.log(p2)).sum(1, keepdims=True)
        assert np.abs(free - held - (p1 * (-np.log(p2) - each)).T @ x1 / 5).max() < 1e-12


def second_step(defense: E2SAD) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = tiny_model()
    batch = batch_of(defense, model, n=2)
    x1 = FGSM(eps=defense.eps1, clip=False).run(batch.images, batch.oracle()).requires_grad_()
    return model, x1.detach(), defense._second(batch, x1, model(x1))


def numerical_gradient(function, image: torch.Tensor, h: float = 1e-6) -> torch.Tensor:
    """Return central differences of a function of one image, pixel by pixel."""
    nudges = h * torch.eye(image.numel(), dtype=image.dtype).reshape(-1, *image.shape)
    return ((function(image + nudges) - function(image - nudges)) / (2 * h)).reshape(image.shape)


def test_the_entropy_step_climbs_ce_with_its_arguments_exchanged():
    """Finite differences of CE(f(x''), f(x1)) in x'' at x1, of the entropy, and the step taken have the same signs."""
    model, x1, x2 = second_step(E2SAD(clip=False))
    for start, end in zip(x1, x2, strict=True):
        with torch.no_grad():
            fixed = model(start.unsqueeze(0))
            exchanged = numerical_gradient(lambda x, fixed=fixed: dissimilarity(model(x), fixed), start)
            both = numerical_gradient(lambda x: entropy(model(x)), start)
        clear = exchanged.abs() > 1e-6
        assert clear.float().mean() > 0.9
        assert torch.allclose(exchanged, both, atol=1e-8)
        assert torch.equal(exchanged.sign()[clear], (end - start).sign()[clear])
        assert (end - start).abs().max().item() == pytest.approx(0.1)


@pytest.mark.parametrize("step", ["noise", "uniform", "vat"])
def test_the_other_steps_climb_d_from_a_point_nearby(step):
    """They raise D(x1, x'') above what a random step of the same length does."""
    model, x1, x2 = second_step(E2SAD(clip=False, second_step=step))
    assert (x2 - x1).abs().max().item() == pytest.approx(0.1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        raised = dissimilarity(model(x1), model(x2))
        for _ in range(20):
            aside = x1 + 0.1 * torch.randn(x1.shape, generator=generator, dtype=x1.dtype).sign()
            assert (raised > dissimilarity(model(x1), model(aside))).all()


def test_vat_starts_at_its_distance_however_small_the_gradient():
    directions = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    directions *= torch.tensor([1e20, 1.0, 1e-25, 0.0]).view(4, 1, 1, 1)
    lengths = E2SAD(second_step="vat", xi=0.5)._to_length_xi(directions).flatten(1).norm(dim=1)
    assert lengths.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.0])


def test_read_literally_the_second_gradient_is_nothing_but_rounding():
    model = tiny_model()
    batch = batch_of(LITERAL, model)
    x1 = batch.images.clone().requires_grad_()
    gradient = LITERAL._gradient_at_x1(x1, model(x1))
    assert gradient.abs().max() < 1e-15
    assert "ill-conditioned" in LITERAL.caution()
    assert E2SAD(second_step="literal", dissimilarity_weight=0).caution() is None, "it takes no second step"
    assert E2SAD().caution() is None


@pytest.mark.parametrize(
    ("step", "field", "nearest"), [("noise", "sigma", 1e-4), ("uniform", "radius", 1e-4), ("vat", "xi", 1e-3)]
)
def test_a_gradient_all_but_at_x1_is_nothing_but_rounding_too(step: str, field: str, nearest: float):
    """In float32 and float64 a tiny network agrees on the signs of the nearest, and on half of those far nearer."""
    images, labels = tiny_images(16)

    def agreement(value: float) -> float:
        defense = E2SAD(second_step=step, clip=False, **{field: value})
        exact, rough = (
            two_steps(defense, tiny_model(dtype=dtype), images.to(dtype), labels, torch.arange(16))
            for dtype in (torch.float64, torch.float32)
        )
        moved = [(second - first).sign() for first, second in (exact, rough)]
        return (moved[0] == moved[1]).double().mean().item()

    assert agreement(nearest) > agreement(nearest / 1000) + 0.2
    assert E2SAD(second_step=step, **{field: nearest}).caution() is None
    nearer = E2SAD(second_step=step, **{field: nearest / 1000})
    assert nearer.unfit()[0] == field
    assert "ill-conditioned" in nearer.caution()


@pytest.mark.parametrize(("step", "given", "coarse"), [
    ("noise", {}, True), ("vat", {}, True), ("literal", {}, False), ("entropy", {}, False), ("uniform", {}, False),
    ("noise", {"sigma": 0.05}, False), ("vat", {"xi": 2.0}, False), ("uniform", {"radius": "1/255"}, True),
])  # fmt: skip
def test_a_step_that_is_too_near_for_bf16_says_so_where_training_is_so(step: str, given: dict[str, Any], coarse: bool):
    defense = E2SAD(second_step=step, **given)
    assert (defense.caution("bf16") != defense.caution("float32")) is coarse
    assert not coarse or "rounding in bf16 decides much of the second step" in defense.caution("bf16")
    assert defense.model_copy(update={"dissimilarity_weight": 0}).caution("bf16") is None


def test_in_bf16_the_signs_of_a_near_step_are_others():
    images, labels = tiny_images(16)

    def agreement(defense: E2SAD) -> float:
        exact = tiny_model(dtype=torch.float32)
        moved = [
            two_steps(defense, model, images.float(), labels, torch.arange(16)) for model in (exact, in_bfloat16(exact))
        ]
        return (moved[0][1] - moved[0][0]).sign().eq((moved[1][1] - moved[1][0]).sign()).double().mean().item()

    steps = (
        E2SAD(clip=False),
        E2SAD(second_step="noise", clip=False),
        E2SAD(second_step="noise", sigma=0.3, clip=False),
    )
    entropy, near, far = map(agreement, steps)
    assert near < entropy - 0.2
    assert near < far - 0.2


def test_weight_gradients_agree_with_finite_differences():
    """Of the e2SAD loss with x1 and x2 held where they are, as eq. 8 differentiates it."""
    defense, model = E2SAD(), tiny_model()
    batch = batch_of(defense, model, n=3)
    found = defense.gradients(batch).weights
    x1 = FGSM(eps=defense.eps1).run(batch.images, batch.oracle()).requires_grad_()
    x2 = defense._second(batch, x1, model(x1))

    def loss() -> float:
        with torch.no_grad():
            logits1 = model(x1)
            clean, first = (batch.losses(logits).mean() for logits in (model(batch.images), logits1))
            return (0.6 * clean + 0.4 * first + 0.1 * dissimilarity(logits1, model(x2)).mean()).item()

    for weight, gradient in zip(batch.params, found, strict=True):
        position = int(gradient.abs().argmax())
        flat = weight.data.view(-1)
        flat[position] += 1e-6
        above = loss()
        flat[position] -= 2e-6
        below = loss()
        flat[position] += 1e-6
        assert (above - below) / 2e-6 == pytest.approx(gradient.view(-1)[position].item(), rel=1e-5)


def test_soft_targets_are_the_papers():
    targets = soft_targets(torch.tensor([2, 0]), 10, 0.25, torch.float64)
    assert targets[0, 2].item() == 0.75
    assert targets[1, 5].item() == pytest.approx(0.25 / 9)
    assert torch.allclose(targets.sum(1), torch.ones(2, dtype=torch.float64))
    hard = soft_targets(torch.tensor([1]), 3, 0.0, torch.float32)
    assert hard.tolist() == [[0.0, 1.0, 0.0]]


def test_losses_against_numbers_worked_out_by_hand():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64))
    other = torch.log(torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64))
    assert cross_entropy(logits, torch.tensor([[0.0, 1.0, 0.0]]).double()).item() == pytest.approx(-np.log(0.2))
    expected = -(0.7 * np.log(0.25) + 0.2 * np.log(0.25) + 0.1 * np.log(0.5))
    assert dissimilarity(logits, other).item() == pytest.approx(expected)
    assert entropy(other).item() == pytest.approx(1.5 * np.log(2))
    assert lead(logits, torch.tensor([0])).item() == pytest.approx(np.log(0.2) - np.log(0.7))
    assert lead(logits, torch.tensor([2])).item() == pytest.approx(np.log(0.7) - np.log(0.1))


@pytest.mark.parametrize(
    ("defense", "label"),
    [
        (Natural(), "natural H"),
        (Natural(label_smoothing=0.25), "natural S"),
        (FgsmTraining(eps="0.4", label_smoothing=0.25), "fgsm_adv eps=0.4 S"),
        (FgsmTraining(eps="24/255"), "fgsm_adv eps=24/255 H"),
        (IfgsmTraining(steps=10), "ifgsm_adv steps=10 H"),
        (E2SAD(), "e2sad S"),
        (E2SAD(label_smoothing=0), "e2sad H"),
        (E2SAD(label_smoothing=0.1), "e2sad label_smoothing=0.1 S"),
        (Natural(label_smoothing=0.1), "natural label_smoothing=0.1 S"),
        (E2SAD(second_step="noise", sigma=0.01), "e2sad second_step=noise sigma=0.01 S"),
    ],
)
def test_labels(defense, label):
    assert defense.label() == label


@pytest.mark.parametrize("kind", sorted(DEFENSES))
def test_every_field_says_what_it_is(kind):
    for name, field in DEFENSES[kind].model_fields.items():
        assert field.description, name


def test_a_parameter_of_another_second_step_is_refused():
    """Two specs that train the same model must not have two keys."""
    for fields in ({"sigma": 0.1}, {"second_step": "noise", "radius": "0.2"}, {"xi": 1.0}, {"power_iterations": 2}):
        with pytest.raises(ValidationError, match="only means something"):
            E2SAD(**fields)


@pytest.mark.parametrize(
    "fields",
    [{"alpha": 1.1}, {"alpha": -0.1}, {"label_smoothing": 1}, {"eps1": 2}, {"second_step": "x"}, {"lambda": 0.1}],
)
def test_bad_specs_are_refused(fields):
    with pytest.raises(ValidationError):
        E2SAD(**fields)


def test_units():
    assert Passes(3, 1, 3).units == 10
