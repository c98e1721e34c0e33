"""Jobs small enough for a test, each under a seed of its own so that nothing is shared that should not be."""

from itertools import count
from typing import Any

_seeds = count(100)
FGSM: dict[str, Any] = {"kind": "fgsm", "eps": 0.3}
IFGSM: dict[str, Any] = {"kind": "ifgsm", "eps": 0.3, "steps": 3}


def fresh_seed() -> int:
    """Return a seed that no other job of this test process has."""
    return next(_seeds)


def benchmark() -> dict[str, Any]:
    """Return two defenses, two attacks and a substitute: 13 stages, some 3 s of work."""
    return {
        "dataset": "mnist-mini",
        "training": {"iterations": 8, "batch_size": 4},
        "defenses": [{"kind": "natural"}, {"kind": "e2sad"}],
        "attacks": [{"kind": "none"}, FGSM, IFGSM],
        "substitutes": [{"kind": "natural"}],
        "transfer": [IFGSM],
        "limit": 20,
        "seeds": [fresh_seed()],
    }


def white_box(iterations: int) -> dict[str, Any]:
    """Return one defense and one attack: 4 stages."""
    schedule = {"iterations": iterations, "batch_size": 4}
    return {
        **benchmark(),
        "training": schedule,
        "defenses": [{"kind": "natural"}],
        "attacks": [FGSM],
        "substitutes": [],
        "transfer": None,
    }


def training(iterations: int = 150, **more: Any) -> dict[str, Any]:
    """Return one natural training; 80 iterations take a second and leave some three checkpoints."""
    return {
        "kind": "train",
        "dataset": "mnist-mini",
        "defense": {"kind": "natural"},
        "training": {"iterations": iterations, "batch_size": 4},
        "seeds": [fresh_seed()],
        **more,
    }


def endless_training() -> dict[str, Any]:
    """Return a training that no test waits for."""
    return training(1_000_000)


def endless_attack() -> dict[str, Any]:
    """Return a training of one iteration, and an attack that no test waits for."""
    attack = {"kind": "pgd", "eps": 0.3, "steps": 10_000, "step_size": 0.01, "restarts": 100}
    return {**white_box(iterations=1), "attacks": [attack]}
