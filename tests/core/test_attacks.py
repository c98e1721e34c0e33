"""Attacks: one contract for every kind, closed forms on linear models, and independent implementations."""

import subprocess
import sys
from fractions import Fraction
from typing import Literal

import foolbox
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from core import losses
from core.attacks import ATTACKS, Attack
from core.attacks.base import Oracle
from core.attacks.fgsm import FGSM
from core.attacks.ifgsm import IFGSM
from core.attacks.none import NoAttack
from core.attacks.pgd import PGD
from core.errors import GauntletError, Interrupted
from core.losses import lead, soft_targets
from core.passes import Passes
from core.random import fold, uniform
from tests.core.counting import CountPasses
from tests.core.small import Recording, small, tiny_images, tiny_model

CONTRACT = [pytest.param(small(cls), id=kind) for kind, cls in ATTACKS.items()]
SIZED = [pytest.param(small(cls), id=kind) for kind, cls in ATTACKS.items() if "eps" in cls.model_fields]


@pytest.fixture(params=CONTRACT)
def attack(request) -> Attack:
    return request.param


@pytest.fixture
def model() -> nn.Module:
    return tiny_model()


def test_the_climbed_targets_are_made_once(model, monkeypatch):
    made = []
    monkeypatch.setattr(losses, "soft_targets", lambda *given: made.append(given) or soft_targets(*given))
    images, labels = tiny_images(6)
    IFGSM(eps="0.1", steps=5, loss="training")(model, images, labels, smoothing=0.25)
    assert len(made) == 1


class TestContract:
    """What holds for every registered attack, those of other packages included."""

    def test_it_stays_in_its_ball_and_in_the_box(self, attack, model):
        images, labels = tiny_images(8)
        adversarial = attack(model, images, labels)
        assert adversarial.shape == images.shape
        assert adversarial.dtype == images.dtype
        assert not adversarial.requires_grad
        assert 0 <= adversarial.min() <= adversarial.max() <= 1
        if attack.radius() is not None:
            assert (adversarial - images).abs().max() <= attack.radius() + 1e-12

    def test_it_leaves_images_weights_buffers_mode_and_flags_alone(self, attack, model):
        images, labels = tiny_images(8)
        kept, weights = images.clone(), {name: value.clone() for name, value in model.state_dict().items()}
        model[0].bias.requires_grad_(False)
        flags = [weight.requires_grad for weight in model.parameters()]
        attack(model, images, labels)
        assert torch.equal(images, kept)
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert [weight.requires_grad for weight in model.parameters()] == flags
        assert all(weight.grad is None for weight in model.parameters())
        assert not model.training

    def test_the_same_twice(self, attack, model):
        images, labels = tiny_images(8)
        before = torch.get_rng_state()
        assert torch.equal(attack(model, images, labels), attack(model, images, labels))
        assert torch.equal(torch.get_rng_state(), before)

    def test_an_example_does_not_know_its_batch(self, attack, model):
        images, labels = tiny_images(6)
        together = attack(model, images, labels)
        for index in range(6):
            one = slice(index, index + 1)
            alone = attack(model, images[one], labels[one], indices=torch.tensor([index]))
            assert torch.allclose(together[one], alone, rtol=0, atol=1e-12)

    def test_it_costs_what_it_says_and_no_weight_gradient(self, attack, model):
        images, labels = tiny_images(8)
        with CountPasses(len(images)) as counted:
            attack(model, images, labels)
        assert counted.passes == attack.passes()

    def test_it_works_where_gradients_are_off(self, attack, model):
        images, labels = tiny_images(4)
        expected = attack(model, images, labels)
        with torch.no_grad():
            assert torch.equal(attack(model, images, labels), expected)

    def test_it_does_not_touch_a_model_in_training_mode(self, attack, model):
        with pytest.raises(ValueError, match="training mode"):
            attack(model.train(), *tiny_images(2))

    def test_nor_one_with_a_part_in_training_mode(self, attack, model):
        model[1].train()
        assert not model.training
        with pytest.raises(ValueError, match="training mode"):
            attack(model, *tiny_images(2))

    def test_it_refuses_bad_images(self, attack, model):
        images, labels = tiny_images(2)
        for bad in (images * 2, images - 1, images * float("nan"), (images * 255).byte(), images[:, 0], images[:0]):
            with pytest.raises(ValueError, match="images"):
                attack(model, bad, labels[: len(bad)])
        with pytest.raises(ValueError, match="labels"):
            attack(model, images, labels[:1])

    def test_it_has_a_label_and_a_key(self, attack):
        assert attack.label()
        assert type(attack).model_validate(attack.model_dump(mode="json")).identity() == attack.identity()

    def test_every_field_says_what_it_is(self, attack):
        for name, field in type(attack).model_fields.items():
            assert field.description, name


@pytest.mark.parametrize("attack", SIZED)
def test_eps_0_is_the_identity(attack, model):
    images, labels = tiny_images(4)
    nothing = attack.model_copy(update={"eps": Fraction(0)})
    assert torch.equal(nothing(model, images, labels), images)


class TestLinear:
    """z = W x of two classes: the loss gradient of class y points along w_other - w_y, wherever x is."""

    shape = (1, 4, 5)

    @pytest.fixture
    def weights(self) -> torch.Tensor:
        weights = torch.randn(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        weights[:, 7] = 0  # no class looks at this pixel: its gradient is exactly 0 and it must stay
        return weights

    @pytest.fixture
    def linear(self, weights) -> nn.Module:
        layer = nn.Linear(20, 2, bias=False).double()
        layer.weight.data = weights
        return nn.Sequential(nn.Flatten(), layer).eval()

    @pytest.fixture
    def images(self) -> torch.Tensor:
        return uniform(0, 0, torch.arange(6), self.shape, torch.float64)

    labels = torch.tensor([0, 1, 0, 1, 1, 0])

    def direction(self, weights: torch.Tensor) -> torch.Tensor:
        return torch.sign(weights[1 - self.labels] - weights[self.labels]).reshape(-1, *self.shape)

    @pytest.mark.parametrize(
        "attack",
        [
            FGSM(eps="0.3"),
            IFGSM(eps="0.3", steps=1),
            IFGSM(eps="0.3", steps=30),
            PGD(eps="0.3", steps=40, random_start=False),
            PGD(eps="0.3", steps=40, step_size="0.05", random_start=False),
        ],
        ids=lambda attack: attack.label(),
    )
    def test_from_the_image_to_the_corner_of_ball_and_box(self, attack, linear, weights, images):
        expected = (images + 0.3 * self.direction(weights)).clamp(0, 1)
        assert torch.allclose(attack(linear, images, self.labels), expected, rtol=0, atol=1e-12)

    def test_without_clip_it_leaves_the_box(self, linear, weights, images):
        for attack in (FGSM(clip=False), IFGSM(clip=False), PGD(clip=False, random_start=False)):
            expected = images + 0.3 * self.direction(weights)
            assert expected.min() < 0 < 1 < expected.max()
            assert torch.allclose(attack(linear, images, self.labels), expected, rtol=0, atol=1e-12)

    def test_pgd_whose_path_is_shorter_than_the_ball(self, linear, weights, images):
        attack = PGD(eps="0.3", steps=4, step_size="0.05", random_start=False)
        expected = (images + 0.2 * self.direction(weights)).clamp(0, 1)
        assert torch.allclose(attack(linear, images, self.labels), expected, rtol=0, atol=1e-12)

    def test_pgd_from_anywhere_reaches_the_corner_with_a_path_of_two_radii(self, linear, weights, images):
        direction = self.direction(weights)
        for seed in range(3):
            adversarial = PGD(eps="0.3", steps=20, step_size="0.03", seed=seed)(linear, images, self.labels)
            expected = (images + 0.3 * direction).clamp(0, 1).where(direction != 0, adversarial)
            assert torch.allclose(adversarial, expected, rtol=0, atol=1e-12)

    def test_pgd_starts_everywhere_in_the_ball(self, linear, images):
        """The pixel without a gradient stays where the random start put it."""
        many, labels = images[:1].expand(200, -1, -1, -1), self.labels[:1].expand(200)
        adversarial = PGD(eps="0.2", steps=1, clip=False)(linear, many, labels)
        starts = (adversarial - many).flatten(1)[:, 7]
        assert -0.2 <= starts.min() < -0.195
        assert 0.195 < starts.max() <= 0.2
        assert abs(starts.mean()) < 4 * 0.2 / (3 * len(starts)) ** 0.5

    def test_the_soft_loss_turns_round_where_the_model_is_surer_than_its_targets(self, linear, weights, images):
        """With delta = .25 the gradient of the training loss vanishes at p_y = .75 and points home beyond it."""
        confidence = linear(images).softmax(1).gather(1, self.labels.unsqueeze(1)).squeeze(1)
        home = torch.where(confidence > 0.75, -1.0, 1.0).double().view(-1, 1, 1, 1)
        assert {-1.0, 1.0} == set(home.flatten().tolist())
        soft = FGSM(eps="0.3", loss="training")
        expected = (images + 0.3 * home * self.direction(weights)).clamp(0, 1)
        assert torch.allclose(soft(linear, images, self.labels, smoothing=0.25), expected, rtol=0, atol=1e-12)
        hard = FGSM(eps="0.3")(linear, images, self.labels, smoothing=0.25)
        assert torch.allclose(hard, (images + 0.3 * self.direction(weights)).clamp(0, 1), rtol=0, atol=1e-12)


def _by_hand(model, image, target, eps, step_size, steps, start=None, clip=True):
    """Return one example's attack, written with backward() and numpy, pixel rules spelt out."""
    clean = image.numpy()
    low, high = clean - eps, clean + eps
    if clip:
        low, high = np.maximum(0, low), np.minimum(1, high)
    adversarial = clean if start is None else np.minimum(high, np.maximum(low, clean + start.numpy()))
    for _ in range(steps):
        variable = torch.tensor(adversarial[None], requires_grad=True)
        loss = -(target * torch.log(torch.softmax(model(variable), dim=1))).sum()
        loss.backward()
        moved = adversarial + step_size * np.sign(variable.grad[0].numpy())
        adversarial = np.minimum(high, np.maximum(low, moved))
    model.zero_grad()
    return torch.tensor(adversarial)


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize(
    ("attack", "step_size", "steps"),
    [
        (FGSM(eps="0.1", loss="training"), 0.1, 1),
        (FGSM(eps="0.1", loss="training", clip=False), 0.1, 1),
        (IFGSM(eps="0.1", steps=10, loss="training"), 0.01, 10),
        (IFGSM(eps="24/255", steps=7, loss="training", clip=False), 24 / 255 / 7, 7),
        (PGD(eps="0.1", steps=12, step_size="0.02", loss="training", random_start=False), 0.02, 12),
        (PGD(eps="8/255", steps=12, step_size="2/255", loss="training", seed=3), 2 / 255, 12),
        (PGD(eps="8/255", steps=5, step_size="2/255", loss="training", clip=False), 2 / 255, 5),
    ],
    ids=lambda value: value.label() if isinstance(value, Attack) else "",
)
def test_every_example_against_an_implementation_by_hand(attack, step_size, steps, smoothing, model):
    images, labels = tiny_images(6)
    indices = torch.arange(6) + 40
    eps = float(attack.eps)
    starts = [None] * 6
    if getattr(attack, "random_start", False):
        starts = eps * (2 * uniform(attack.seed, fold(0, 0), indices, images.shape[1:], torch.float64) - 1)
    targets = soft_targets(labels, 4, smoothing, torch.float64)
    expected = torch.stack(
        [
            _by_hand(model, image, target, eps, step_size, steps, start, attack.clip)
            for image, target, start in zip(images, targets, starts, strict=True)
        ]
    )
    found = attack(model, images, labels, smoothing=smoothing, indices=indices)
    assert (found - images).abs().max() > 0.9 * min(eps, steps * step_size)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs", "eps"),
    [
        (FGSM(eps="0.1"), foolbox.attacks.LinfFastGradientAttack(random_start=False), 0.1),
        (
            IFGSM(eps="0.1", steps=10),
            foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=0.01, steps=10, random_start=False),
            0.1,
        ),
        (
            PGD(eps="0.05", steps=20, step_size="0.01", random_start=False),
            foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=20, random_start=False),
            0.05,
        ),
    ],
    ids=lambda value: value.label() if isinstance(value, Attack) else "",
)
def test_against_foolbox(ours, theirs, eps):
    model = tiny_model(dtype=torch.float32)
    images, labels = tiny_images(16, dtype=torch.float32)
    found = ours(model, images, labels)
    raw, _, _ = theirs(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), images, labels, epsilons=eps)
    assert (found - images).abs().max() > 0.9 * eps
    assert torch.allclose(found, raw, rtol=0, atol=1e-6)


class TestRestarts:
    def test_each_example_keeps_its_worst_run(self, model):
        images, labels = tiny_images(32)
        several = PGD(eps="0.1", steps=2, step_size="0.05", restarts=4)
        oracle = Oracle(model=model, loss=_label_loss(labels), labels=labels, indices=torch.arange(32))
        runs = torch.stack([several._once(images, oracle, restart) for restart in range(4)])
        leads = torch.stack([lead(model(run), labels) for run in runs]).detach()
        best = leads.argmax(0)
        assert len(set(best.tolist())) == 4
        expected = runs[best, torch.arange(32)]
        assert torch.equal(several(model, images, labels), expected)

    def test_restarts_without_a_random_start_are_refused(self):
        with pytest.raises(ValidationError, match="random_start"):
            PGD(restarts=2, random_start=False)

    def test_their_cost_counts_the_comparison(self, model):
        images, labels = tiny_images(8)
        attack = PGD(steps=2, restarts=3)
        with CountPasses(8) as counted:
            attack(model, images, labels)
        assert counted.passes == attack.passes() == Passes(forward=9, input_backward=6)


def _label_loss(labels):
    return lambda logits: nn.functional.cross_entropy(logits, labels, reduction="none")


def test_a_seed_moves_the_random_start_and_nothing_else_does(model):
    images, labels = tiny_images(4)
    assert not torch.equal(PGD(steps=1)(model, images, labels), PGD(steps=1, seed=1)(model, images, labels))


@pytest.mark.parametrize("attack", [IFGSM(steps=1000), PGD(steps=1, restarts=50)], ids=lambda attack: attack.label())
def test_it_stops_between_two_steps(attack, model):
    images, labels = tiny_images(2)
    monitor = Recording(stop_at=4, reason="cancelled")
    with CountPasses(2) as counted, pytest.raises(Interrupted):
        attack(model, images, labels, monitor=monitor)
    assert counted.passes.forward == 3
    assert all(weight.requires_grad for weight in model.parameters())


class Broken(Attack):
    kind: Literal["broken"] = "broken"
    by: float = 0.0

    def run(self, images, oracle):
        return images + self.by if self.by < 9 else images * float("nan")

    def passes(self):
        return Passes()

    def radius(self):
        return Fraction(1, 10)


class Backward(Broken):
    kind: Literal["backward"] = "backward"

    def run(self, images, oracle):
        images = images.requires_grad_()
        oracle.loss(oracle.model(images)).sum().backward()
        return images.detach() + 0.05 * images.grad.sign()

    def in_box(self):
        return False


def test_even_an_attack_that_calls_backward_computes_no_weight_gradient(model):
    images, labels = tiny_images(2)
    with CountPasses(2) as counted:
        Backward()(model, images, labels)
    assert counted.passes == Passes(forward=1, input_backward=1)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(("by", "message"), [(0.2, "moved by"), (9.0, "not finite")])
def test_a_result_outside_the_ball_is_refused(by, message, model):
    images, labels = tiny_images(2)
    with pytest.raises(GauntletError, match=message):
        Broken(by=by)(model, images, labels)


@pytest.mark.parametrize(("by", "edge"), [(0.05, 1.0), (-0.05, 0.0)])
def test_a_result_outside_the_box_is_refused(by, edge, model):
    images, labels = tiny_images(2)
    with pytest.raises(GauntletError, match=r"leaves \[0, 1\]"):
        Broken(by=by)(model, torch.full_like(images, edge), labels)


@pytest.mark.parametrize(
    ("attack", "label"),
    [
        (NoAttack(), "clean"),
        (FGSM(), "FGSM eps=0.3"),
        (FGSM(eps="24/255", loss="training"), "FGSM eps=24/255 soft loss"),
        (IFGSM(steps=30), "IFGSM eps=0.3 k=30"),
        (PGD(restarts=10, step_size="0.02"), "PGD eps=0.3 k=40 step_size=0.02 restarts=10"),
        (PGD(random_start=False, clip=False), "PGD eps=0.3 k=40 no clip no random start"),
    ],
)
def test_labels(attack, label):
    assert attack.label() == label


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "fgsm", "eps": 1.5},
        {"kind": "fgsm", "eps": -0.1},
        {"kind": "fgsm", "eps": "24/0"},
        {"kind": "fgsm", "steps": 3},
        {"kind": "ifgsm", "steps": 0},
        {"kind": "ifgsm", "steps": 10_001},
        {"kind": "ifgsm", "steps": 2.5},
        {"kind": "pgd", "restarts": 0},
        {"kind": "pgd", "restarts": 1001},
        {"kind": "pgd", "loss": "margin"},
    ],
)
def test_bad_specs_are_refused(spec):
    with pytest.raises(ValidationError):
        ATTACKS[spec["kind"]](**spec)


def test_specs_load_without_torch():
    """The API process validates specs and plans costs; loading torch there would cost seconds and memory."""
    code = (
        "import sys\n"
        "import core.attacks, core.defenses, core.networks, core.training, core.evaluation\n"
        "for kinds in (core.attacks.ATTACKS, core.defenses.DEFENSES):\n"
        "    [(cls().passes().units, cls().label(), cls().identity()) for cls in kinds.values()]\n"
        "[cls().flop for cls in core.networks.NETWORKS.values()]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
