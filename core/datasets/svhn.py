"""SVHN, the paper's second dataset (20 epochs, eps 24/255): the cropped digits in the official .mat files."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from core.datasets.base import Data, Dataset, attack_panel, defaults_at, transfer_attack

if TYPE_CHECKING:
    from torch import Tensor


class Svhn(Dataset):
    """House numbers from street views, 32 x 32 colour."""

    kind: Literal["svhn"] = "svhn"

    title = "SVHN"
    in_paper = True
    shape = (3, 32, 32)
    classes = tuple("0123456789")
    train_size = 73_257
    test_size = 26_032
    checksums: ClassVar = {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    }
    source = "run `gauntlet data svhn`"
    instead = "take the dataset synth-digits, drawn digits that are not SVHN"
    network = "svhn_cnn"
    eps = "24/255"
    panel: ClassVar = attack_panel("24/255", iterations=(10, 20, 30), pgd_step="2/255")  # eps / 12
    transfer: ClassVar = transfer_attack(panel)
    defaults: ClassVar = defaults_at("24/255", "8/255", dissimilarity_weight=0.3)
    default_epochs = 20

    def fetch(self, data_dir: Path) -> None:
        """Return once torchvision downloaded both files."""
        from core.vision import torchvision

        for split in ("train", "test"):
            torchvision().datasets.SVHN(str(data_dir), split=split, download=True)

    def read(self, data_dir: Path) -> Data:
        """Return both files as torchvision reads them: the digit 0, which they label 10, becomes 0."""
        return Data(*self._split(data_dir, "train"), *self._split(data_dir, "test"))

    def _split(self, data_dir: Path, split: str) -> "tuple[Tensor, Tensor]":
        import torch

        from core.vision import torchvision

        found = torchvision().datasets.SVHN(str(data_dir), split=split)
        return torch.from_numpy(found.data).contiguous(), torch.from_numpy(found.labels)
