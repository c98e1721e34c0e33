"""`python -m bench`: training and crafting against plain loops, foolbox and ART, and against the device's ceilings."""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench import plain, plot, profile
from bench.agreement import agreement
from bench.clock import Timing, Work, interleaved, ratio
from core.attacks import ATTACKS
from core.capture import EAGER
from core.compute import configured, keep_freed_memory
from core.datasets import DATASETS
from core.defenses import DEFENSES
from core.errors import DatasetMissing, SpecError
from core.evaluation import craft
from core.execution import Execution
from core.losses import soft_targets
from core.networks import NETWORKS
from core.provenance import commit, device_class, device_name, processor_name, require_device
from core.training import Loop, Training, load_model, train

TRAININGS: dict[str, tuple[dict[str, Any], plain.Step, float]] = {
    "natural": ({"kind": "natural"}, plain.natural_loss, 0.0),
    "fgsm_adv": ({"kind": "fgsm_adv"}, plain.fgsm_loss, 0.0),
    "e2sad": ({"kind": "e2sad"}, plain.e2sad_loss, 0.25),
    "ifgsm_adv k=10": ({"kind": "ifgsm_adv", "steps": 10}, plain.ifgsm_loss(10), 0.0),
    "ifgsm_adv k=30": ({"kind": "ifgsm_adv", "steps": 30}, plain.ifgsm_loss(30), 0.0),
}


WARM_UP = EAGER + 2
"""Iterations before the clock: kernels are chosen, the optimiser makes its state, on CUDA the graph is recorded."""
RIVALS = {"foolbox": "foolbox", "ART": "art"}
"""Name -> the module it needs."""


def main() -> None:
    """Measure, print a table, and write docs/results/bench-<device>.json; a run cut short leaves what it measured."""
    options = _options()
    keep_freed_memory()
    device = device_class() if options.device == "auto" else options.device
    try:
        require_device(device)
    except SpecError as error:
        sys.exit(f"bench: {error}")
    execution = Execution.on(device, torch.get_num_threads())
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"bench-{device}.json"
    report = _report(execution, options)
    data = DATASETS["mnist-mini"]().load(Path())
    for row in rows(data, execution, options, report["ceilings"]):
        report["rows"].append(row)
        report["relative_cost_of_training"] = _relative(report["rows"])
        _save(report, path)
        print(line(row), flush=True)
    if options.seeds > 1:
        with configured(execution):
            report["agreement"] = agreement(_real(data), execution, options.seeds, 300, 1000)
        _save(report, path)
    if options.only in "profile of e2sad":
        report["profile_of_e2sad"], operators = profile.measured(execution)
        _save(report, path)
        (options.out / f"profile-{device}.txt").write_text(operators)
    if find_spec("matplotlib"):
        plot.draw(report, path.with_suffix(".svg"))
    print(f"written to {path}\n\n{table(report)}")


def _report(execution: Execution, options: argparse.Namespace) -> dict[str, Any]:
    """Return the report before anything has been measured."""
    missing = [name for name, module in {**RIVALS, "the plot": "matplotlib"}.items() if find_spec(module) is None]
    return {
        "command": f"python -m bench {shlex.join(sys.argv[1:])}".rstrip(),
        "device": device_name() if execution.device == "cuda" else processor_name(),
        "device_class": execution.device,
        "execution": execution.model_dump(),
        "all_candidates": "the same threads, cudnn.deterministic, no cudnn.benchmark, the precision that the row says",
        "left_out": [f"{name}: not installed" for name in missing],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "platform": platform.platform()},
        "commit": options.commit or commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ceilings": {},
        "rows": [],
        "relative_cost_of_training": {},
        "agreement": [],
        "profile_of_e2sad": {},
    }  # fmt: skip


def _save(report: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds per row")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of the slowest candidate per round, about")
    parser.add_argument("--images", type=int, default=500, help="images per crafting")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the comparison of accuracies; below 2: none")
    parser.add_argument("--only", default="", help="rows whose name holds this text, such as 'train e2sad'")
    parser.add_argument("--commit", help="of this code, where it is no git checkout")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the report")
    return parser.parse_args()


def rows(
    data: Any, execution: Execution, options: argparse.Namespace, ceiling: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Yield every row, and fill in the ceilings; both sides compute in the same precision, on CUDA in tf32 as well."""
    wait: Work | None = torch.cuda.synchronize if execution.device == "cuda" else None
    with configured(execution):
        ceiling |= ceilings(execution.device, wait, "float32", 2 * options.rounds + 1)
        yield from layout_rows(data, execution, options, wait, ceiling, ["float32"])
        yield from training_rows(data, execution, options, wait, ceiling, "float32")
        yield from crafting_rows(data, execution, options, wait, ceiling["matmul float32"])
    if execution.device == "cuda":
        with configured(execution, tf32=True):
            for precision in ("tf32", "bf16"):
                ceiling |= ceilings(execution.device, wait, precision, 2 * options.rounds + 1)
            yield from layout_rows(data, execution, options, wait, ceiling, ["tf32", "bf16"])
            yield from training_rows(data, execution, options, wait, ceiling, "tf32")


def ceilings(device: str, wait: Work | None, precision: str, rounds: int) -> dict[str, float]:
    """Return what the device does at best, now: operations per second of a large matrix product, bytes copied."""
    size = 2048 if device == "cpu" else 8192
    form = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=form) for _ in range(2))
    blob = torch.empty(2**27 if device == "cpu" else 2**30, dtype=torch.uint8, device=device)
    other = torch.empty_like(blob)
    timings = interleaved({"matmul": lambda: a @ b, "copy": lambda: other.copy_(blob)}, rounds, wait)
    return {
        f"matmul {precision}": 2 * size**3 / min(timings["matmul"].seconds),
        "copy bytes": 2 * blob.numel() / min(timings["copy"].seconds),
    }


def training_rows(
    data: Any,
    execution: Execution,
    options: argparse.Namespace,
    wait: Work | None,
    ceiling: dict[str, float],
    precision: str,
) -> Iterator[dict[str, Any]]:
    """Yield a row per defense: seconds per iteration of 256 images, ours and the plain loop's, taking turns.

    What is measured is iterations of trainings under way. Building them, warming up and recording the graph lie
    outside the clock, and so does the curve's look at the accuracy.
    """
    network = NETWORKS["mnist_cnn"]()
    images, labels = data.train_images.to(execution.device), data.train_labels.to(execution.device)
    for kind, (spec, loss, smoothing) in TRAININGS.items():
        name = f"train {kind}" if precision == "float32" else f"train {kind}, {precision}"
        if options.only not in name:
            continue
        defense, targets = (
            DEFENSES[spec["kind"]].model_validate(spec),
            soft_targets(labels, 10, smoothing, torch.float32),
        )
        schedule = Training.model_validate({"iterations": 1_000_000, "precision": precision})
        loops = {
            "ours": Loop(
                defense=defense, network=network, training=schedule, execution=execution, mathematics="bench", seed=0,
                images=images, labels=labels,
            ),
            "plain": plain.Loop(loss, images, targets, execution.device),
        }  # fmt: skip
        works = {who: partial(_advance, loop) for who, loop in loops.items()}
        for work in works.values():
            work(WARM_UP)
        iterations = _repeats(works, options.budget, wait)
        timings = interleaved({who: partial(work, iterations) for who, work in works.items()}, options.rounds, wait)
        flop = defense.passes().units * network.flop * 256
        yield _row(name, precision, timings, "plain", iterations, flop, ceiling[f"matmul {precision}"])


def layout_rows(
    data: Any, execution: Execution, options: argparse.Namespace, wait: Work | None, ceiling: dict[str, float],
    precisions: Sequence[str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield a row per precision: e2SAD training as the execution plan lays images out, against the other layout."""
    other: Any = "contiguous" if execution.layout == "channels_last" else "channels_last"
    defense, network = DEFENSES["e2sad"](), NETWORKS["mnist_cnn"]()
    for precision in precisions:
        name = f"layout {execution.layout}, {precision}"
        if options.only not in name:
            continue
        works = {
            who: partial(_advance, Loop(
                defense=defense, network=network, execution=execution.model_copy(update={"layout": layout}),
                training=Training.model_validate({"iterations": 1_000_000, "precision": precision}),
                mathematics="bench", seed=0, images=data.train_images, labels=data.train_labels,
            ))
            for who, layout in (("ours", execution.layout), (other, other))
        }  # fmt: skip
        for work in works.values():
            work(WARM_UP)
        iterations = _repeats(works, options.budget, wait)
        timings = interleaved({who: partial(work, iterations) for who, work in works.items()}, options.rounds, wait)
        flop = defense.passes().units * network.flop * 256
        yield _row(name, precision, timings, other, iterations, flop, ceiling[f"matmul {precision}"])


def _advance(loop: Loop | plain.Loop, iterations: int) -> None:
    for _ in range(iterations):
        loop.advance()


def crafting_rows(
    data: Any, execution: Execution, options: argparse.Namespace, wait: Work | None, ceiling: float
) -> Iterator[dict[str, Any]]:
    """Yield a row per attack: seconds per image, ours against the plain loop's and those rivals that are installed."""
    network = NETWORKS["mnist_cnn"]()
    n = options.images
    schedule = Training(iterations=30, batch_size=32)
    weights = train(
        DEFENSES["fgsm_adv"](), network, schedule, execution, mathematics="bench", seed=0, images=data.train_images,
        labels=data.train_labels,
    ).weights  # fmt: skip
    model = load_model(network, weights, execution)
    other = plain.network().to(execution.device).eval()
    images, labels = data.test_images[:n], data.test_labels[:n]
    floats, truth = images.to(execution.device).float() / 255, labels.to(execution.device)
    for name, spec, others in (
        ("craft IFGSM-30", {"kind": "ifgsm", "steps": 30}, {
            "plain": lambda: plain.ifgsm(other, floats, truth, 0.3, 30),
            "foolbox": lambda: plain.foolbox_ifgsm(other, floats, truth, 30),
            "ART": lambda: plain.art_ifgsm(other, floats, truth, 30),
        }),
        ("craft PGD-40", {"kind": "pgd"}, {"plain": lambda: plain.pgd(other, floats, truth, 0.3, 40, 0.01)}),
    ):  # fmt: skip
        if options.only not in name:
            continue
        attack: Any = ATTACKS[str(spec["kind"])].model_validate(spec)
        candidates: dict[str, Work] = {"ours": lambda attack=attack: craft(attack, model, images, labels, execution)}
        candidates |= {who: work for who, work in others.items() if who not in RIVALS or find_spec(RIVALS[who])}
        timings = interleaved(candidates, options.rounds, wait)
        yield _row(name, "float32", timings, "plain", n, attack.passes().units * network.flop, ceiling)


def _repeats(works: Mapping[str, Callable[[int], None]], budget: float, wait: Work | None) -> int:
    """Return how many iterations take the slowest of the warm candidates about `budget` seconds."""
    once = interleaved({who: partial(work, 4) for who, work in works.items()}, 1, wait)
    return max(4, int(4 * budget / max(timing.median for timing in once.values())))


def _row(
    name: str, precision: str, timings: dict[str, Timing], rival: str, repeats: int, flop: float, ceiling: float
) -> dict[str, Any]:
    ours = timings["ours"]
    return {
        "name": name,
        "precision": precision,
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
    trainings = {
        row["name"].removeprefix("train "): row["seconds_per_unit"]
        for row in rows
        if row["name"].startswith("train ") and row["precision"] == "float32"
    }
    known = trainings.get("fgsm_adv")
    return {name: seconds / known for name, seconds in trainings.items()} if known else {}


def table(report: dict[str, Any]) -> str:
    """Return the report as text."""
    products = [
        f"{value / 1e9:.0f} GFLOP/s {name.replace('matmul', 'matrix product in')}"
        for name, value in report["ceilings"].items()
        if name.startswith("matmul")
    ]
    costs = ", ".join(f"{name} {cost:.2f}" for name, cost in report["relative_cost_of_training"].items())
    lines = [
        f"{report['device']}, torch {report['versions']['torch']}, {report['execution']['threads']} threads",
        f"ceilings: {', '.join(products)}, {report['ceilings']['copy bytes'] / 1e9:.1f} GB/s copy",
        *(f"left out: {missing}" for missing in report["left_out"]),
        "",
        f"{'':28} {'ours':>12} {'spread':>7} {'of ceiling':>10}  times faster than",
        *(line(row) for row in report["rows"]),
        "",
        f"cost of training, FGSM = 1: {costs}",
    ]
    for row in report["agreement"]:
        ours, other = (f"{100 * row[who]['mean']:.1f} ± {100 * row[who]['deviation']:.1f}" for who in ("ours", "plain"))
        lines.append(
            f"{row['defense']} under {row['attack']['kind']}: ours {ours} %, plain {other} %, "
            f"{len(row['ours']['accuracies'])} seeds"
        )
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in report["profile_of_e2sad"].items())
    return "\n".join([*lines, f"e2SAD's time: {shares}"])


def line(row: dict[str, Any]) -> str:
    """Return a row as text."""
    others = ", ".join(f"{name} {times:.2f}" for name, times in row["times_faster_than"].items())
    return (
        f"{row['name']:28} {1000 * row['seconds_per_unit']:9.2f} ms {100 * row['spread']:6.1f}% "
        f"{100 * row['share_of_ceiling']:9.0f}%  {others}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["service"]:
        from bench import service  # which needs no GPU, and its own servers

        service.main(sys.argv[2:])
    else:
        main()
