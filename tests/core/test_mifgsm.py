"""MI-FGSM: IFGSM without momentum, an independent implementation with it. The contract tests hold for it as for all."""

import torch
from torch.nn.functional import cross_entropy

from core.attacks.base import Oracle
from core.attacks.ifgsm import IFGSM
from core.attacks.mifgsm import MIFGSM
from tests.core.small import tiny_images, tiny_model

GOLDEN = {
    "attacks/mifgsm@1": {"adversarial": [-12.792324802012537, -16.149320552386314, -28.211109717714436]},
    "attacks/mifgsm@1 loss=training": {"adversarial": [-13.501209064057484, -20.317267775889988, -31.87363123356936]},
    "attacks/mifgsm@1 clip=False": {"adversarial": [-20.309993229394504, -20.47076938066585, -32.5127420277253]},
    "attacks/mifgsm@1 decay=0.5": {"adversarial": [-13.20854072867052, -18.203510610015755, -27.541150900271024]},
}


def test_without_decay_it_is_ifgsm():
    model, (images, labels) = tiny_model(), tiny_images(8)
    momentum = MIFGSM(eps=0.3, steps=5, decay=0.0)(model, images, labels)
    assert torch.equal(momentum, IFGSM(eps=0.3, steps=5)(model, images, labels))


def test_example_by_example_it_is_the_papers_algorithm():
    model, (images, labels) = tiny_model(), tiny_images(8)
    found = MIFGSM(eps=0.3, steps=6, decay=0.9)(model, images, labels)
    for image, label, adversarial in zip(images, labels, found, strict=True):
        x, g = image.clone(), torch.zeros_like(image)
        for _ in range(6):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(model(x[None]), label[None]), x)
            g = 0.9 * g + gradient / gradient.abs().sum()
            x = torch.minimum(torch.maximum(x.detach() + 0.05 * g.sign(), image - 0.3), image + 0.3).clamp(0, 1)
        assert torch.allclose(x, adversarial, rtol=0, atol=1e-9)


def test_momentum_outlives_the_gradient():
    slopes = iter(torch.tensor([[2.0, -3.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).double())
    oracle = Oracle(
        model=lambda images: images.flatten(1) * next(slopes), loss=lambda logits: logits.sum(1),
        labels=torch.tensor([0]), indices=torch.tensor([0]),
    )  # fmt: skip
    found = MIFGSM(eps=0.3, steps=3).run(torch.full((1, 1, 1, 3), 0.5, dtype=torch.float64), oracle)
    assert torch.allclose(found.flatten(), torch.tensor([0.8, 0.2, 0.5]).double(), rtol=0, atol=1e-6)


def test_momentum_changes_the_path_and_a_vanished_gradient_is_no_nan():
    model, (images, labels) = tiny_model(), tiny_images(8)
    assert not torch.equal(MIFGSM(steps=6)(model, images, labels), IFGSM(steps=6)(model, images, labels))
    for weight in model.parameters():
        weight.data.zero_()
    assert torch.equal(MIFGSM(steps=3)(model, images, labels), images)
