"""Crafts in a process whose memory is limited; prints what it heard, and how far its examples are from a calm run's."""

import json
import re
import resource
import sys
from pathlib import Path

import torch

from core.attacks.ifgsm import IFGSM
from core.evaluation import craft
from core.execution import Execution
from core.networks import NETWORKS
from core.portions import Portion
from core.training import load_model

EXACT = Execution(threads=1, precision="float64", layout="contiguous")
NETWORK = NETWORKS["mnist_cnn"]()
IMAGES = torch.randint(256, (64, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MODEL = load_model(NETWORK, NETWORK.build(0).state_dict(), EXACT)


def crafted(portion: Portion) -> torch.Tensor:
    return craft(IFGSM(eps=0.3, steps=2), MODEL, IMAGES, torch.arange(64) % 10, EXACT, portion=portion)


def main(megabytes: int) -> None:
    calm, said = crafted(Portion(4)), list[str]()
    held = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert held
    resource.setrlimit(resource.RLIMIT_AS, ((int(held[1]) << 10) + (megabytes << 20),) * 2)
    tight = crafted(Portion(64, said.append))
    print(json.dumps({"said": said, "apart": (tight - calm).abs().max().item()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
