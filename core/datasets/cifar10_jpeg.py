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
from core.datasets.base import Data, Dataset
from core.datasets.cifar10 import Cifar10

if TYPE_CHECKING:
    from torch import Tensor


class Cifar10Jpeg(Dataset):
    """The photographs of CIFAR-10 after JPEG compression, 32 x 32 colour."""

    kind: Literal["cifar10-jpeg"] = "cifar10-jpeg"

    title = "CIFAR-10 (JPEG copy)"
    stands_for = "cifar10"
    note = "lossy JPEG copy of CIFAR-10 (pixel RMSE 7.8 / 255); not comparable with published figures"
    shape = Cifar10.shape
    classes = Cifar10.classes
    train_size = Cifar10.train_size
    test_size = Cifar10.test_size
    checksums: ClassVar = {"cifar10-jpeg/cifar10_jpeg.npz": "496a9f896fbdc48cdf615223a845e217"}
    source = "take the dataset cifar10, which can be downloaded (no public address has this copy)"
    network = Cifar10.network
    eps = Cifar10.eps
    panel: ClassVar = Cifar10.panel
    transfer: ClassVar = Cifar10.transfer
    defaults: ClassVar = Cifar10.defaults
    default_epochs = Cifar10.default_epochs

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
