"""CIFAR-10 from its official Python archive.

Those files are pickles, and reading a pickle can run code. Here it cannot run anything but what the publishers wrote:
`load` compares every file with its published md5 before torchvision opens it, and to make other content with that md5
is a second-preimage attack, which md5 still withstands (its known weakness is collisions its author chooses).
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from core.datasets.base import Data, Dataset, attack_panel, defaults_at, transfer_attack

if TYPE_CHECKING:
    from torch import Tensor


class Cifar10(Dataset):
    """Photographs of ten kinds of things, 32 x 32 colour."""

    kind: Literal["cifar10"] = "cifar10"

    title = "CIFAR-10"
    note = "not in the paper; network and schedule are those it has for SVHN, eps is the field's 8/255"
    shape = (3, 32, 32)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    train_size = 50_000
    test_size = 10_000
    checksums: ClassVar = {
        "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
        "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    }
    source = "run `gauntlet data cifar10`"
    network = "svhn_cnn"
    eps = "8/255"
    panel: ClassVar = attack_panel("8/255", iterations=(10, 20, 30), pgd_step="2/255")  # Madry's step, eps / 4
    transfer: ClassVar = transfer_attack(panel)
    defaults: ClassVar = defaults_at("8/255", "8/765")  # the paper's 3 : 1
    default_epochs = 20

    def fetch(self, data_dir: Path) -> None:
        """Return once torchvision downloaded and unpacked the archive."""
        from core.vision import torchvision

        torchvision().datasets.CIFAR10(str(data_dir), download=True)

    def read(self, data_dir: Path) -> Data:
        """Return the batches as torchvision reads them, channels first."""
        return Data(*self._split(data_dir, train=True), *self._split(data_dir, train=False))

    def _split(self, data_dir: Path, *, train: bool) -> "tuple[Tensor, Tensor]":
        import torch

        from core.vision import torchvision

        found = torchvision().datasets.CIFAR10(str(data_dir), train=train)
        return torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(found.targets)
