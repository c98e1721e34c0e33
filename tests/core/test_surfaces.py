"""Loss surfaces: their known points, e2SAD's own path, and a model whose surface is known in closed form."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from core.attacks.fgsm import FGSM
from core.attacks.ifgsm import IFGSM
from core.defenses.e2sad import E2SAD
from core.errors import Interrupted
from core.execution import Execution
from core.portions import Portion
from core.surfaces import Plane, beside, grid, random_across, signs, two_steps
from tests.core import naive
from tests.core.small import Recording, tiny_images, tiny_model
from tests.core.test_portions import memory_for

EXACT = Execution(threads=1, precision="float64", layout="contiguous")
TICKS = (0.0, 0.1, 0.3)


def plane(direction=None, *, through_second=False, clip=True, seed=0) -> Plane:
    return Plane(direction or FGSM(eps=0.3), TICKS, through_second, clip, seed)


def mean_loss(model, images, labels) -> float:
    return cross_entropy(model(images), labels).item()


class TestKnownPoints:
    """What a surface must hold whatever the model."""

    def test_at_zero_it_is_the_clean_loss_and_accuracy(self):
        model, (images, labels) = tiny_model(), tiny_images(30)
        found = grid(model, images, labels, plane(), None, EXACT, portion=Portion(7))
        assert found.loss[0][0] == pytest.approx(mean_loss(model, images, labels), rel=1e-12)
        assert found.accuracy[0][0] == pytest.approx((model(images).argmax(1) == labels).double().mean().item())

    @pytest.mark.parametrize("clip", [True, False])
    @pytest.mark.parametrize("eps", [0.1, 0.3])
    def test_at_eps_along_fgsm_it_is_the_loss_under_fgsm(self, eps: float, clip: bool):
        model, (images, labels) = tiny_model(), tiny_images(30)
        attack = FGSM(eps=eps, clip=clip)
        found = grid(model, images, labels, plane(attack, clip=clip), None, EXACT, portion=Portion(7))
        expected = mean_loss(model, attack(model, images, labels), labels)
        assert found.loss[TICKS.index(eps)][0] == pytest.approx(expected, rel=1e-12)

    def test_the_direction_of_a_model_trained_on_soft_targets_may_climb_them(self):
        model, (images, labels) = tiny_model(), tiny_images(12)
        attack = FGSM(eps=0.3, loss="training")
        found = grid(model, images, labels, plane(attack), None, EXACT, smoothing=0.7)
        expected = mean_loss(model, attack(model, images, labels, smoothing=0.7), labels)
        assert found.loss[2][0] == pytest.approx(expected, rel=1e-12)

    def test_it_does_not_depend_on_the_batch(self):
        model, (images, labels) = tiny_model(), tiny_images(20)
        one, many = (grid(model, images, labels, plane(), None, EXACT, portion=Portion(size)) for size in (20, 3))
        assert torch.allclose(torch.tensor(one.loss), torch.tensor(many.loss), rtol=1e-12, atol=0)
        assert one.accuracy == many.accuracy

    @pytest.mark.parametrize("steps", [None, E2SAD()], ids=["no path", "path"])
    def test_where_memory_runs_out_it_goes_on_with_fewer_images_at_once(self, steps):
        model, (images, labels) = tiny_model(), tiny_images(20)
        through = plane(through_second=steps is not None)
        whole, said = grid(model, images, labels, through, steps, EXACT), []
        portion = Portion(20, said.append)
        with memory_for(6):
            parts = grid(model, images, labels, through, steps, EXACT, portion=portion)
        assert (portion.lowered, len(said)) == (5, 2)
        assert torch.allclose(torch.tensor(whole.loss), torch.tensor(parts.loss), rtol=1e-12, atol=0)
        assert whole.accuracy == parts.accuracy
        for one, other in zip(whole.path, parts.path, strict=True):
            assert one == pytest.approx(other, rel=1e-12)

    def test_it_stops_between_two_points(self):
        model, (images, labels) = tiny_model(), tiny_images(4)
        with pytest.raises(Interrupted):
            grid(model, images, labels, plane(), None, EXACT, monitor=Recording(stop_at=5))


class TestClosedForm:
    """Two classes, logits 0 and w.x with weights of one size: the loss is softplus of a line in t1, whatever t2."""

    def test_a_linear_models_surface(self):
        size, shape = 0.05, (1, 4, 4)
        weights = size * (1 - 2 * (torch.arange(16) % 3 == 0).double())
        linear = nn.Linear(16, 2, bias=False, dtype=torch.float64)
        linear.weight.data = torch.stack((torch.zeros(16, dtype=torch.float64), weights))
        model = nn.Sequential(nn.Flatten(), linear).eval()
        images = torch.rand(9, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        labels = torch.ones(9, dtype=torch.int64)
        found = grid(model, images, labels, plane(FGSM(eps=0.2, clip=False), clip=False), None, EXACT)
        margins = (images.flatten(1) @ weights).tolist()
        for i, t1 in enumerate(TICKS):
            expected = sum(math.log1p(math.exp(t1 * 16 * size - margin)) for margin in margins) / len(margins)
            for j in range(len(TICKS)):
                assert found.loss[i][j] == pytest.approx(expected, rel=1e-12), (i, j)


class TestDirections:
    """g1 is a sign that the attack meant; g2 is orthogonal to it."""

    def test_steps_forth_and_back_are_no_direction(self):
        there = torch.arange(1, 10).view(1, 1, 3, 3) / 13
        moved = there.clone()
        for step in (0.01, 0.01, -0.01, -0.01):
            moved = moved + step
        assert not torch.equal(moved, there), "rounding leaves something"
        moved[0, 0, 0, 0] += 1 / 255  # a pixel that the box stopped after one grey level
        assert signs(moved - there).flatten().tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]

    def test_random_signs_are_exactly_orthogonal_and_full(self):
        first = (torch.arange(3 * 27).view(3, 3, 3, 3) * 7 % 3 - 1).double()
        across = random_across(first, 0, torch.arange(3))
        assert (first * across).flatten(1).sum(1).tolist() == [0, 0, 0]
        assert set(across.unique().tolist()) <= {-1, 0, 1}
        odd = (first != 0).flatten(1).sum(1) % 2
        assert ((across == 0).flatten(1).sum(1) == odd).all()

    def test_they_belong_to_the_image_and_the_seed(self):
        first = torch.ones(4, 1, 4, 4)
        whole = random_across(first, 0, torch.arange(4))
        assert torch.equal(random_across(first[2:], 0, torch.arange(2, 4)), whole[2:])
        assert not torch.equal(random_across(first, 1, torch.arange(4)), whole)
        assert len({tuple(image.flatten().tolist()) for image in whole}) == 4

    def test_beside_is_orthogonal_and_spans_the_perturbation(self):
        generator = torch.Generator().manual_seed(1)
        first = torch.randn(5, 2, 3, 3, dtype=torch.float64, generator=generator).sign()
        moved = torch.randn(5, 2, 3, 3, dtype=torch.float64, generator=generator)
        across = beside(first, moved)
        assert (first * across).flatten(1).sum(1).abs().max() < 1e-12
        assert across.flatten(1).norm(dim=1).tolist() == pytest.approx(first.flatten(1).norm(dim=1).tolist())
        t1 = (moved * first).sum((1, 2, 3)) / first.square().sum((1, 2, 3))
        t2 = (moved * across).sum((1, 2, 3)) / across.square().sum((1, 2, 3))
        assert torch.allclose(t1.view(-1, 1, 1, 1) * first + t2.view(-1, 1, 1, 1) * across, moved, atol=1e-12)

    def test_without_a_perturbation_there_is_no_nan(self):
        nothing = torch.zeros(2, 1, 3, 3)
        assert beside(nothing, nothing).abs().sum() == 0
        assert random_across(nothing, 0, torch.arange(2)).isfinite().all()


class TestPath:
    """The path is the two steps that e2SAD's training takes."""

    @pytest.mark.parametrize("second_step", ["entropy", "noise", "uniform", "vat"])
    def test_its_ends_are_the_papers_first_and_second_examples(self, second_step: str):
        defense = E2SAD(second_step=second_step, alpha=0.2)
        model, (images, labels) = tiny_model(), tiny_images(12)
        targets = naive.soft(labels, 4, defense.label_smoothing, torch.float64)
        x1 = naive.fgsm(model, images, targets, float(defense.eps1), defense)
        gradient = naive.second_gradient(model, defense, x1, torch.arange(12), 0, 0)
        x2 = naive.clip(x1 + float(defense.eps2) * gradient.sign(), defense)
        found = two_steps(defense, model.requires_grad_(False), images, labels, torch.arange(12))
        assert torch.allclose(found[0], x1, atol=1e-12)
        assert torch.allclose(found[1], x2, atol=1e-12)

    @pytest.mark.parametrize("through_second", [True, False])
    def test_its_points_are_their_losses_at_their_projections(self, through_second: bool):
        model, (images, labels) = tiny_model(), tiny_images(12)
        steps, attack = E2SAD(), IFGSM(eps=0.3, steps=3)
        ends = two_steps(steps, model, images, labels, torch.arange(12))
        found = grid(
            model, images, labels, plane(attack, through_second=through_second), steps, EXACT, portion=Portion(5)
        ).path  # fmt: skip
        assert found[0]["t1"] == found[0]["t2"] == 0
        for place, visited in zip(found, (images, *ends), strict=True):
            assert place["loss"] == pytest.approx(mean_loss(model, visited, labels), rel=1e-12)
            assert place["accuracy"] == pytest.approx((model(visited).argmax(1) == labels).double().mean().item())
        g1 = signs(attack(model, images, labels) - images)
        t1 = ((ends[1] - images) * g1).sum((1, 2, 3)) / g1.square().sum((1, 2, 3))
        assert found[2]["t1"] == pytest.approx(t1.mean().item(), rel=1e-12)

    def test_without_a_path_there_are_no_points(self):
        model, (images, labels) = tiny_model(), tiny_images(4)
        assert grid(model, images, labels, plane(), None, EXACT).path == []
