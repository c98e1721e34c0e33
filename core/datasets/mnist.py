"""MNIST, the paper's first dataset (its section 4.1: 30,000 iterations of 256, eps 0.3)."""

from pathlib import Path
from typing import ClassVar, Literal

from core.datasets.base import Data, Dataset, attack_panel, checked_files_only, read_idx, transfer_attack


class Mnist(Dataset):
    """Handwritten digits, 28 x 28 grey."""

    kind: Literal["mnist"] = "mnist"

    title = "MNIST"
    in_paper = True
    shape = (1, 28, 28)
    classes = tuple("0123456789")
    train_size = 60_000
    test_size = 10_000
    first_images = "of the first half, which is the harder one"  # other writers; measured in docs/results/verdict.md
    checksums: ClassVar = {
        "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    source = "run `gauntlet data mnist`"
    network = "mnist_cnn"
    eps = "0.3"
    panel: ClassVar = attack_panel("0.3", "0.4", iterations=(10, 30), pgd_step="0.01")
    transfer: ClassVar = transfer_attack(panel)
    default_iterations = 30_000

    def fetch(self, data_dir: Path) -> None:
        """Return once torchvision downloaded the archives, or found them, and unpacked them."""
        from core.vision import torchvision

        checked_files_only(torchvision().datasets.MNIST)(str(data_dir), download=True)

    def read(self, data_dir: Path) -> Data:
        """Return both splits; the unpacked files are enough."""
        from core.vision import torchvision

        return read_idx(torchvision().datasets.MNIST, data_dir)
