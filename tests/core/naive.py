"""The training losses as a paper's reader would first write them: every pass on its own, backward() through all.

Independent of core.defenses and core.attacks on purpose; only random numbers come from core.random.
"""

import torch

from core.random import fold, normal, uniform


def soft(labels, classes, delta, dtype):
    rows = []
    for label in labels.tolist():
        row = [delta / (classes - 1)] * classes
        row[label] = 1 - delta
        rows.append(row)
    return torch.tensor(rows, dtype=dtype)


def ce(probabilities, logits):
    return -(probabilities * torch.log(torch.softmax(logits, 1))).sum(1).mean()


def image_gradient(loss_of, images):
    variable = images.clone().requires_grad_()
    loss_of(variable).backward()
    return variable.grad


def clip(images, defense):
    return images.clamp(0, 1) if defense.clip else images


def fgsm(model, images, targets, eps, defense):
    gradient = image_gradient(lambda x: ce(targets, model(x)), images)
    return clip(images + eps * gradient.sign(), defense)


def mixed(model, defense, images, targets, adversarial):
    return defense.alpha * ce(targets, model(images)) + (1 - defense.alpha) * ce(targets, model(adversarial))


def natural(model, defense, images, targets, indices, seed, iteration):
    return ce(targets, model(images))


def fgsm_adv(model, defense, images, targets, indices, seed, iteration):
    return mixed(model, defense, images, targets, fgsm(model, images, targets, float(defense.eps), defense))


def ifgsm_adv(model, defense, images, targets, indices, seed, iteration):
    eps, adversarial = float(defense.eps), images
    for _ in range(defense.steps):
        gradient = image_gradient(lambda x: ce(targets, model(x)), adversarial)
        moved = adversarial + eps / defense.steps * gradient.sign()
        adversarial = clip(moved.minimum(images + eps).maximum(images - eps), defense)
    return mixed(model, defense, images, targets, adversarial)


def pgd_minmax(model, defense, images, targets, indices, seed, iteration):
    eps, adversarial = float(defense.eps), images
    if defense.random_start:
        draws = uniform(0, fold(fold(seed, iteration), 0), indices, images.shape[1:], images.dtype)
        adversarial = clip(images + eps * (2 * draws - 1), defense)
    for _ in range(defense.steps):
        gradient = image_gradient(lambda x: ce(targets, model(x)), adversarial)
        moved = adversarial + float(defense.step_size) * gradient.sign()
        adversarial = clip(moved.minimum(images + eps).maximum(images - eps), defense)
    return ce(targets, model(adversarial))


def second_gradient(model, defense, x1, indices, seed, iteration):
    target = torch.softmax(model(x1), 1).detach()
    if defense.second_step == "entropy":
        return image_gradient(lambda x: ce(torch.softmax(model(x), 1), model(x1).detach()), x1)
    draw = uniform if defense.second_step == "uniform" else normal
    draws = draw(seed, fold(seed, iteration), indices, x1.shape[1:], x1.dtype)

    def unit(direction):
        return direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    if defense.second_step == "vat":
        direction = draws
        for _ in range(defense.power_iterations):
            direction = image_gradient(lambda x: ce(target, model(x)), x1 + defense.xi * unit(direction))
        return direction
    start = (2 * draws - 1) * float(defense.radius) if draw is uniform else defense.sigma * draws
    return image_gradient(lambda x: ce(target, model(x)), x1 + start)


def hamm_minimax(model, defense, images, targets, indices, seed, iteration):
    """Every example's gradient from a backward pass of its own; norms and reductions spelt out in sums."""
    eps, n = float(defense.eps), len(images)
    adversarial = fgsm(model, images, targets, eps, defense).requires_grad_()
    gradients = []
    for i in range(n):
        loss = ce(targets[i : i + 1], model(adversarial[i : i + 1]))
        gradients.append(torch.autograd.grad(loss, adversarial, create_graph=True)[0][i])

    def norm(values):
        if defense.norm == "linf":
            return values.abs().max()
        return values.abs().sum() if defense.norm == "l1" else (values**2).sum() ** 0.5

    each = [norm(gradient) ** defense.power for gradient in gradients]
    size = {
        "batch-mean": n * norm(torch.stack(gradients) / n) ** defense.power,
        "batch-sum": n * norm(torch.stack(gradients)) ** defense.power,
        "example-mean": sum(each) / n,
        "example-sum": sum(each),
    }[defense.reduction]
    penalty = defense.constant * eps * size
    return mixed(model, defense, images, targets, adversarial) + (1 - defense.alpha) * penalty


def strong_adversary(model, defense, images, targets, indices, seed, iteration):
    moved = []
    for image, target in zip(images, targets, strict=True):
        truth = int(target.argmax())
        logits = model(image[None])[0].detach()
        order = sorted((j for j in range(len(logits)) if j != truth), key=lambda j: -logits[j].item())
        ways = []
        for j in order[: defense.rivals]:
            slope = image_gradient(lambda x, j=j, truth=truth: model(x)[0, j] - model(x)[0, truth], image[None])[0]
            ways.append(((logits[truth] - logits[j]).item() / slope.abs().sum().item(), j, slope))
        moved.append(image + float(defense.eps) * min(ways)[2].sign())
    return ce(targets, model(clip(torch.stack(moved), defense)))


def e2sad(model, defense, images, targets, indices, seed, iteration):
    x1 = fgsm(model, images, targets, float(defense.eps1), defense)
    gradient = second_gradient(model, defense, x1, indices, seed, iteration)
    x2 = clip(x1 + float(defense.eps2) * gradient.sign(), defense)
    first = torch.softmax(model(x1), 1)
    if defense.detach_target:
        first = first.detach()
    return mixed(model, defense, images, targets, x1) + defense.dissimilarity_weight * ce(first, model(x2))


LOSSES = {
    "natural": natural,
    "fgsm_adv": fgsm_adv,
    "ifgsm_adv": ifgsm_adv,
    "pgd_minmax": pgd_minmax,
    "e2sad": e2sad,
    "hamm_minimax": hamm_minimax,
    "strong_adversary": strong_adversary,
}
