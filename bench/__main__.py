"""`python -m bench`: training and crafting against plain loops, foolbox and ART, and against the device's ceilings."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import plain, plot, profile
from bench.agreement import agreement
from bench.clock import Timing, Work, interleaved, ratio
from core.attacks import ATTACKS
from core.datasets import DATASETS
from core.defenses import DEFENSES
from core.errors import DatasetMissing
from core.evaluation import craft
from core.execution import Execution
from core.losses import soft_targets
from core.networks import NETWORKS
from core.provenance import device_class, device_name
from core.training import Training, load_model, train

TRAININGS: dict[str, tuple[dict[str, Any], plain.Step, float]] = {
    "natural": ({"kind": "natural"}, plain.natural_loss, 0.0),
    "fgsm_adv": ({"kind": "fgsm_adv"}, plain.fgsm_loss, 0.0),
    "e2sad": ({"kind": "e2sad"}, plain.e2sad_loss, 0.25),
    "ifgsm_adv k=10": ({"kind": "ifgsm_adv", "steps": 10}, plain.ifgsm_loss(10), 0.0),
    "ifgsm_adv k=30": ({"kind": "ifgsm_adv", "steps": 30}, plain.ifgsm_loss(30), 0.0),
}


def main() -> None:
    """Measure, print a table, and write docs/results/bench-<device>.json."""
    options = _options()
    device = device_class()
    execution = Execution.on(device, torch.get_num_threads())
    wait: Work | None = torch.cuda.synchronize if device == "cuda" else None
    data = DATASETS["mnist-mini"]().load(Path())
    ceiling = ceilings(device, wait)
    rows = training_rows(data, execution, options, wait, ceiling["matmul float32"])
    rows += crafting_rows(data, execution, options, wait, ceiling["matmul float32"])
    report = {
        "command": f"python -m bench --rounds {options.rounds} --budget {options.budget}",
        "device": device_name(),
        "device_class": device,
        "execution": execution.model_dump(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "platform": platform.platform()},
        "commit": _commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ceilings": ceiling,
        "rows": rows,
        "relative_cost_of_training": _relative(rows),
        "agreement": agreement(_real(data), execution, options.seeds, 300, 1000) if options.seeds > 1 else [],
    }
    report["profile_of_e2sad"], operators = profile.measured(execution)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"bench-{device}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    plot.draw(report, path.with_suffix(".svg"))
    (options.out / f"profile-{device}.txt").write_text(operators)
    print(f"written to {path}\n\n{table(report)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds per row")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per candidate and round, about")
    parser.add_argument("--images", type=int, default=500, help="images per crafting")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the comparison of accuracies; below 2: none")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the report")
    return parser.parse_args()


def ceilings(device: str, wait: Work | None) -> dict[str, float]:
    """Return what the device does at best, now: operations per second of a large matrix product, bytes copied."""
    size = 2048 if device == "cpu" else 8192
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    blob = torch.empty(2**27 if device == "cpu" else 2**30, dtype=torch.uint8, device=device)
    other = torch.empty_like(blob)
    timings = interleaved({"matmul": lambda: a @ b, "copy": lambda: other.copy_(blob)}, 15, wait)
    return {
        "matmul float32": 2 * size**3 / min(timings["matmul"].seconds),
        "copy bytes": 2 * blob.numel() / min(timings["copy"].seconds),
    }


def training_rows(
    data: Any, execution: Execution, options: argparse.Namespace, wait: Work | None, ceiling: float
) -> list[dict[str, Any]]:
    """Return a row per defense: seconds per iteration of 256 images, ours and the plain loop's, taking turns."""
    rows: list[dict[str, Any]] = []
    network = NETWORKS["mnist_cnn"]()
    images, labels = data.train_images.to(execution.device), data.train_labels.to(execution.device)
    for name, (spec, loss, smoothing) in TRAININGS.items():
        defense = DEFENSES[spec["kind"]].model_validate(spec)
        targets = soft_targets(labels, 10, smoothing, torch.float32)

        ours = partial(_our_training, defense, images, labels, execution)
        theirs = partial(_plain_training, loss, images, targets, execution)
        iterations = _repeats(ours, options.budget, wait)
        candidates: dict[str, Work] = {"ours": partial(ours, iterations), "plain": partial(theirs, iterations)}
        timings = interleaved(candidates, options.rounds, wait)
        flop = defense.passes().units * network.flop * 256
        rows.append(_row(f"train {name}", timings, "plain", iterations, flop, ceiling))
    return rows


def _our_training(defense: Any, images: Any, labels: Any, execution: Execution, iterations: int) -> None:
    network, schedule = NETWORKS["mnist_cnn"](), Training(iterations=iterations)
    train(defense, network, schedule, execution, recipe="bench", seed=0, images=images, labels=labels)


def _plain_training(loss: Any, images: Any, targets: Any, execution: Execution, iterations: int) -> None:
    plain.train(loss, images, targets, iterations, execution.device)


def crafting_rows(
    data: Any, execution: Execution, options: argparse.Namespace, wait: Work | None, ceiling: float
) -> list[dict[str, Any]]:
    """Return a row per attack: seconds per image, ours against the plain loop's, foolbox's and ART's."""
    network = NETWORKS["mnist_cnn"]()
    n = options.images
    schedule = Training(iterations=30)
    weights = train(
        DEFENSES["fgsm_adv"](), network, schedule, execution, recipe="bench", seed=0, images=data.train_images,
        labels=data.train_labels,
    ).weights  # fmt: skip
    model = load_model(network, weights, execution)
    other = plain.network().to(execution.device).eval()
    images, labels = data.test_images[:n], data.test_labels[:n]
    floats, truth = images.to(execution.device).float() / 255, labels.to(execution.device)
    rows: list[dict[str, Any]] = []
    for name, spec, theirs in (
        ("IFGSM-30", {"kind": "ifgsm", "steps": 30}, {
            "plain": lambda: plain.ifgsm(other, floats, truth, 0.3, 30),
            "foolbox": lambda: plain.foolbox_ifgsm(other, floats, truth, 30),
            "ART": lambda: plain.art_ifgsm(other, floats, truth, 30),
        }),
        ("PGD-40", {"kind": "pgd"}, {"plain": lambda: plain.pgd(other, floats, truth, 0.3, 40, 0.01)}),
    ):  # fmt: skip
        attack: Any = ATTACKS[str(spec["kind"])].model_validate(spec)
        candidates: dict[str, Work] = {"ours": lambda attack=attack: craft(attack, model, images, labels, execution)}
        timings = interleaved({**candidates, **theirs}, options.rounds, wait)
        rows.append(_row(f"craft {name}", timings, "plain", n, attack.passes().units * network.flop, ceiling))
    return rows


def _repeats(work: Callable[[int], None], budget: float, wait: Work | None) -> int:
    """Return how many iterations take about `budget` seconds."""
    once = interleaved({"work": lambda: work(4)}, 1, wait)["work"].median
    return max(4, int(4 * budget / once))


def _row(
    name: str, timings: dict[str, Timing], rival: str, repeats: int, flop: float, ceiling: float
) -> dict[str, Any]:
    ours = timings["ours"]
    return {
        "name": name,
        "seconds_per_unit": ours.median / repeats,
        "spread": ours.spread,
        "rounds": len(ours.seconds),
        "units_per_round": repeats,
        "flop_per_unit": flop,
        "share_of_ceiling": flop * repeats / ours.median / ceiling,
        "times_faster_than": {other: ratio(timing, ours) for other, timing in timings.items() if other != "ours"},
        "spread_of_others": {other: timing.spread for other, timing in timings.items() if other != "ours"},
        "main_rival": rival,
    }


def _real(mini: Any) -> Any:
    """Return MNIST where it is installed, else the given part of it."""
    try:
        return DATASETS["mnist"]().load(Path(os.environ.get("DATA_DIR", "data")))
    except DatasetMissing:
        return mini


def _relative(rows: list[dict[str, Any]]) -> dict[str, float]:
    trainings = {row["name"].removeprefix("train "): row["seconds_per_unit"] for row in rows if "train" in row["name"]}
    return {name: seconds / trainings["fgsm_adv"] for name, seconds in trainings.items()}


def _commit() -> str:
    answer = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def table(report: dict[str, Any]) -> str:
    """Return the report as text."""
    ceiling = report["ceilings"]
    lines = [
        f"{report['device']}, torch {report['versions']['torch']}, {report['execution']['threads']} threads",
        f"ceilings: {ceiling['matmul float32'] / 1e9:.0f} GFLOP/s matrix product, "
        f"{ceiling['copy bytes'] / 1e9:.1f} GB/s copy",
        "",
        f"{'':24} {'ours':>12} {'spread':>7} {'of ceiling':>10}  times faster than",
    ]
    for row in report["rows"]:
        others = ", ".join(f"{name} {times:.2f}" for name, times in row["times_faster_than"].items())
        lines.append(
            f"{row['name']:24} {1000 * row['seconds_per_unit']:9.2f} ms {100 * row['spread']:6.1f}% "
            f"{100 * row['share_of_ceiling']:9.0f}%  {others}"
        )
    costs = ", ".join(f"{name} {cost:.2f}" for name, cost in report["relative_cost_of_training"].items())
    lines += ["", f"cost of training, FGSM = 1: {costs}"]
    for row in report["agreement"]:
        ours, other = (f"{100 * row[who]['mean']:.1f} ± {100 * row[who]['deviation']:.1f}" for who in ("ours", "plain"))
        lines.append(
            f"{row['defense']} under {row['attack']['kind']}: ours {ours} %, plain {other} %, "
            f"{len(row['ours']['accuracies'])} seeds"
        )
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in report["profile_of_e2sad"].items())
    return "\n".join([*lines, f"e2SAD's time: {shares}"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["service"]:
        from bench import service  # which needs no GPU, and its own servers

        service.main(sys.argv[2:])
    else:
        main()
