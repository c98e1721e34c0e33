"""Fashion-MNIST: MNIST's format, sizes and protocol with harder images."""

from pathlib import Path
from typing import ClassVar, Literal

from core.datasets.base import Data, Dataset, checked_files_only, read_idx
from core.datasets.mnist import Mnist


class FashionMnist(Dataset):
    """Articles of clothing, 28 x 28 grey."""

    kind: Literal["fashion-mnist"] = "fashion-mnist"

    title = "Fashion-MNIST"
    note = "not in the paper; network, eps and schedule are those it has for MNIST"
    shape = Mnist.shape
    classes = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    train_size = Mnist.train_size
    test_size = Mnist.test_size
    checksums: ClassVar = {
        "FashionMNIST/raw/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "FashionMNIST/raw/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }
    source = "run `gauntlet data fashion-mnist`"
    network = Mnist.network
    eps = Mnist.eps
    panel: ClassVar = Mnist.panel
    transfer: ClassVar = Mnist.transfer
    default_iterations = Mnist.default_iterations

    def fetch(self, data_dir: Path) -> None:
        """Return once torchvision downloaded the archives, or found them, and unpacked them."""
        from core.vision import torchvision

        checked_files_only(torchvision().datasets.FashionMNIST)(str(data_dir), download=True)

    def read(self, data_dir: Path) -> Data:
        """Return both splits; the unpacked files are enough."""
        from core.vision import torchvision

        return read_idx(torchvision().datasets.FashionMNIST, data_dir)
