"""CIFAR-10 re-encoded as JPEG, for machines that cannot have the official files.

The copy is lossy (mean pixel RMSE 7.8 / 255), so its results are its own. Decoders may differ by a grey level, so
each version of Pillow has results of its own.
"""

import io
import itertools
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from core.canonical import digest
from core.datasets.base import Data, Dataset, attack_panel, defaults_at, transfer_attack

if TYPE_CHECKING:
    from torch import Tensor


class Cifar10Jpeg(Dataset):
    """The photographs of CIFAR-10 after JPEG compression, 32 x 32 colour."""

    kind: Literal["cifar10-jpeg"] = "cifar10-jpeg"

    title = "CIFAR-10 (JPEG copy)"
    stands_for = "cifar10"
    note = "lossy JPEG copy of CIFAR-10 (pixel RMSE 7.8 / 255); not comparable with published figures"
    shape = (3, 32, 32)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    train_size = 50_000
    test_size = 10_000
    checksums: ClassVar = {"cifar10-jpeg/cifar10_jpeg.npz": "496a9f896fbdc48cdf615223a845e217"}
    source = "ask for the file (no public address has it; `cifar10` is the dataset to download)"
    network = "svhn_cnn"
    eps = "8/255"
    panel: ClassVar = attack_panel("8/255", iterations=(10, 20, 30), pgd_step="2/255")  # Madry's step, eps / 4
    transfer: ClassVar = transfer_attack(panel)
    defaults: ClassVar = defaults_at("8/255", "8/765")  # the paper's 3 : 1
    default_epochs = 20

    @property
    def sha256(self) -> str:
        """Return the sha256 of all that decides the pixels: file, reading, and version of the decoder."""
        return digest({"file": super().sha256, "pillow": version("pillow")})

    def read(self, data_dir: Path) -> Data:
        """Return the decoded images; takes some ten seconds, for Pillow decodes one at a time."""
        import numpy as np

        with np.load(data_dir / "cifar10-jpeg" / "cifar10_jpeg.npz", allow_pickle=False) as arrays:
            return Data(*_split(arrays, "train"), *_split(arrays, "test"))


def _split(arrays: Any, split: str) -> "tuple[Tensor, Tensor]":
    import torch

    images = decode(arrays[f"{split}_jpeg"].tobytes(), arrays[f"{split}_offsets"].tolist())
    return images, torch.from_numpy(arrays[f"{split}_labels"]).long()


def decode(stream: bytes, offsets: list[int]) -> "Tensor":
    """Return the JPEG files that lie in `stream` between successive offsets, as uint8 [N, 3, H, W]."""
    import numpy as np
    import torch
    from PIL import Image

    files = (io.BytesIO(stream[start:end]) for start, end in itertools.pairwise(offsets))
    images = np.stack([np.asarray(Image.open(file, formats=["JPEG"])) for file in files])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
