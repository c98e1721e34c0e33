"""Does speed change the answer? Accuracies of our training and of the plain loop, several seeds each."""

import statistics
from typing import Any

import torch

from bench import plain
from core.attacks import ATTACKS
from core.defenses import DEFENSES
from core.evaluation import craft, predict
from core.execution import Execution
from core.losses import soft_targets
from core.networks import NETWORKS
from core.training import Training, load_model, train

KINDS: dict[str, tuple[plain.Step, float]] = {
    "fgsm_adv": (plain.fgsm_loss, 0.0),
    "e2sad": (plain.e2sad_loss, 0.25),
}
ATTACKED = ({"kind": "none"}, {"kind": "fgsm"}, {"kind": "ifgsm", "steps": 10})


def agreement(
    data: Any, execution: Execution, seeds: int, iterations: int, limit: int
) -> list[dict[str, Any]]:  # fmt: skip
    """Return a row per defense and attack: mean accuracy and its spread over seeds, ours and the plain loop's."""
    images, labels = data.test_images[:limit], data.test_labels[:limit]
    rows: list[dict[str, Any]] = []
    for kind, (loss, smoothing) in KINDS.items():
        found: dict[str, list[list[float]]] = {"ours": [], "plain": []}
        for seed in range(seeds):
            for who, model in (
                ("ours", _ours(kind, data, execution, seed, iterations)),
                ("plain", _plain(loss, smoothing, data, execution, seed, iterations)),
            ):
                found[who].append([_accuracy(spec, model, images, labels, execution) for spec in ATTACKED])
        for number, spec in enumerate(ATTACKED):
            sample = {who: [accuracies[number] for accuracies in runs] for who, runs in found.items()}
            rows.append({"defense": kind, "attack": spec, "iterations": iterations, "n": limit, **_compared(sample)})
    return rows


def _compared(sample: dict[str, list[float]]) -> dict[str, Any]:
    """Return both samples with mean and standard deviation, and Welch's t of their difference."""
    said = {
        who: {"accuracies": values, "mean": statistics.mean(values), "deviation": statistics.stdev(values)}
        for who, values in sample.items()
    }
    error = sum(one["deviation"] ** 2 / len(one["accuracies"]) for one in said.values()) ** 0.5
    difference = said["ours"]["mean"] - said["plain"]["mean"]
    return {**said, "difference": difference, "welch_t": difference / error if error else 0.0}


def _ours(kind: str, data: Any, execution: Execution, seed: int, iterations: int) -> Any:
    network = NETWORKS["mnist_cnn"]()
    weights = train(
        DEFENSES[kind](), network, Training(iterations=iterations, batch_size=64), execution, mathematics="agreement",
        seed=seed, images=data.train_images, labels=data.train_labels,
    ).weights  # fmt: skip
    return load_model(network, weights, execution)


def _plain(loss: Any, smoothing: float, data: Any, execution: Execution, seed: int, iterations: int) -> Any:
    torch.manual_seed(seed)
    images = data.train_images.to(execution.device)
    targets = soft_targets(data.train_labels.to(execution.device), 10, smoothing, torch.float32)
    return plain.train(loss, images, targets, iterations, execution.device, batch_size=64).eval()


def _accuracy(spec: dict[str, Any], model: Any, images: Any, labels: Any, execution: Execution) -> float:
    attack: Any = ATTACKS[str(spec["kind"])].model_validate(spec)
    shown = craft(attack, model, images, labels, execution)
    return (predict(model, shown, execution) == labels).float().mean().item()
