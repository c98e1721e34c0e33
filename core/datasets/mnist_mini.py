"""A sixth of MNIST that travels inside the package, so that a first benchmark needs no download.

The images are the official ones bit for bit; which ones, and how the file is made: scripts/make_mnist_mini.py.
"""

from pathlib import Path
from typing import ClassVar, Literal

from core.datasets.base import Data, Dataset
from core.datasets.mnist import Mnist

_SPLITS = ("train_images", "train_labels", "test_images", "test_labels")


class MnistMini(Dataset):
    """10,000 training and 2,000 test images of MNIST, 28 x 28 grey, shipped with the package."""

    kind: Literal["mnist-mini"] = "mnist-mini"

    title = "MNIST (mini)"
    stands_for = "mnist"
    note = "every 6th training and every 5th test image of MNIST; not comparable with results on all of it"
    shape = Mnist.shape
    classes = Mnist.classes
    train_size = 10_000
    test_size = 2_000
    checksums: ClassVar = {"mnist_mini.npz": "c38ddce61555d91942ce4e9094ffb445"}
    network = Mnist.network
    eps = Mnist.eps
    panel: ClassVar = Mnist.panel
    transfer: ClassVar = Mnist.transfer
    default_iterations = 5_000  # the 128 epochs that the paper's 30,000 iterations are on all of MNIST

    @property
    def remedy(self) -> str:
        """Return what to do when the shipped file is gone or changed; DATA_DIR has no part in it."""
        return "install gauntlet again"

    def folder(self, data_dir: Path) -> Path:
        """Return the package's own folder."""
        return Path(__file__).parent

    def read(self, data_dir: Path) -> Data:
        """Return the arrays of the shipped file."""
        import numpy as np
        import torch

        with np.load(self.folder(data_dir) / "mnist_mini.npz", allow_pickle=False) as arrays:
            train, train_labels, test, test_labels = (torch.from_numpy(arrays[name]) for name in _SPLITS)
        return Data(train.unsqueeze(1), train_labels.long(), test.unsqueeze(1), test_labels.long())
