"""What we are measured against: the loops a researcher would write, and the attacks of foolbox and ART.

Plain PyTorch, eager, contiguous, with the default Adam; each attack is a function of its own that knows nothing of the
training step around it. The mathematics is that of core/defenses, so the arithmetic compared is the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softmax

Step = Callable[[nn.Module, Tensor, Tensor], Tensor]


def network() -> nn.Module:
    """Return the network of the paper's Table 4, as its table reads."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 1024), nn.ReLU(), nn.Linear(1024, 10),
    )  # fmt: skip


def fgsm(model: nn.Module, images: Tensor, targets: Tensor, eps: float) -> Tensor:
    """Return FGSM's examples."""
    images = images.clone().detach().requires_grad_(True)
    loss = cross_entropy(model(images), targets)
    gradient = torch.autograd.grad(loss, images)[0]
    return torch.clamp(images + eps * gradient.sign(), 0, 1).detach()


def ifgsm(model: nn.Module, images: Tensor, targets: Tensor, eps: float, steps: int) -> Tensor:
    """Return IFGSM's examples, as torchattacks' BIM does it."""
    clean, adversarial = images.clone().detach(), images.clone().detach()
    for _ in range(steps):
        adversarial.requires_grad_(True)
        loss = cross_entropy(model(adversarial), targets)
        gradient = torch.autograd.grad(loss, adversarial)[0]
        adversarial = adversarial.detach() + eps / steps * gradient.sign()
        adversarial = torch.clamp(clean + torch.clamp(adversarial - clean, -eps, eps), 0, 1).detach()
    return adversarial


def pgd(model: nn.Module, images: Tensor, targets: Tensor, eps: float, steps: int, step_size: float) -> Tensor:
    """Return PGD's examples from one random start, as torchattacks' PGD does it."""
    clean = images.clone().detach()
    adversarial = torch.clamp(clean + torch.empty_like(clean).uniform_(-eps, eps), 0, 1).detach()
    for _ in range(steps):
        adversarial.requires_grad_(True)
        loss = cross_entropy(model(adversarial), targets)
        gradient = torch.autograd.grad(loss, adversarial)[0]
        adversarial = adversarial.detach() + step_size * gradient.sign()
        adversarial = torch.clamp(clean + torch.clamp(adversarial - clean, -eps, eps), 0, 1).detach()
    return adversarial


def natural_loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the clean loss."""
    return cross_entropy(model(images), targets)


def fgsm_loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return eq. 3 with FGSM."""
    adversarial = fgsm(model, images, targets, 0.3)
    return 0.6 * cross_entropy(model(images), targets) + 0.4 * cross_entropy(model(adversarial), targets)


def ifgsm_loss(steps: int) -> Step:
    """Return eq. 3 with IFGSM of that many steps."""

    def loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        adversarial = ifgsm(model, images, targets, 0.3, steps)
        return 0.6 * cross_entropy(model(images), targets) + 0.4 * cross_entropy(model(adversarial), targets)

    return loss


def e2sad_loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return eq. 8 with the entropy reading of eq. 7."""
    x1 = fgsm(model, images, targets, 0.3)
    start = x1.clone().requires_grad_(True)
    logits = model(start)
    entropy = -(softmax(logits, 1) * log_softmax(logits, 1)).sum()
    x2 = torch.clamp(x1 + 0.1 * torch.autograd.grad(entropy, start)[0].sign(), 0, 1).detach()
    first = model(x1)
    dissimilarity = -(softmax(first, 1) * log_softmax(model(x2), 1)).sum(1).mean()
    clean = cross_entropy(model(images), targets)
    return 0.6 * clean + 0.4 * cross_entropy(first, targets) + 0.1 * dissimilarity


class Loop:
    """A training under way, epoch after shuffled epoch."""

    def __init__(self, loss: Step, images: Tensor, targets: Tensor, device: str, batch_size: int = 256):
        self.model = network().to(device).train()
        self._loss, self._images, self._targets, self._batch_size = loss, images, targets, batch_size
        self._device = device
        self._optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self._waiting: list[Tensor] = []

    def advance(self) -> None:
        """Train on one further batch."""
        if not self._waiting:
            order = torch.randperm(len(self._images), device=self._images.device)
            whole = len(order) // self._batch_size * self._batch_size
            self._waiting = list(order[:whole].split(self._batch_size))
        batch = self._waiting.pop()
        images, targets = self._images[batch].to(self._device).float() / 255, self._targets[batch].to(self._device)
        self._optimiser.zero_grad()
        self._loss(self.model, images, targets).backward()
        self._optimiser.step()


def train(
    loss: Step, images: Tensor, targets: Tensor, iterations: int, device: str, batch_size: int = 256
) -> nn.Module:  # fmt: skip
    """Return the network after that many iterations."""
    loop = Loop(loss, images, targets, device, batch_size)
    for _ in range(iterations):
        loop.advance()
    return loop.model


def foolbox_ifgsm(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Return IFGSM's examples as foolbox makes them."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    attack = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=0.3 / steps, steps=steps, random_start=False)
    return attack.run(wrapped, images, labels, epsilon=0.3)


def art_ifgsm(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Any:
    """Return IFGSM's examples as ART makes them."""
    from art.attacks.evasion import BasicIterativeMethod
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1),
        device_type="gpu" if images.is_cuda else "cpu",
    )  # fmt: skip
    attack = BasicIterativeMethod(
        classifier, eps=0.3, eps_step=0.3 / steps, max_iter=steps, batch_size=len(images), verbose=False
    )
    return attack.generate(images.cpu().numpy(), labels.cpu().numpy())
