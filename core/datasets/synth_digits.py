"""Digits drawn by a program, as many and of the format of SVHN, so that its network and suites run anywhere."""

import hashlib
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from core.canonical import digest
from core.datasets.base import Data, Dataset
from core.datasets.svhn import Svhn

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIECES = ("train_images", "train_labels", "test_images", "test_labels")


class RenderedDigits(Dataset):
    """Base of sets that core/digits.py draws where they are needed, kept in DATA_DIR where that can be written."""

    real = False
    stands_for = "svhn"
    note = "digits drawn by a program in SVHN's format; not SVHN, and not comparable with published figures"
    shape = Svhn.shape
    classes = Svhn.classes
    checksums: ClassVar = {}
    source = "nothing: it is drawn where it is needed"
    network = Svhn.network
    eps = Svhn.eps
    panel: ClassVar = Svhn.panel
    transfer: ClassVar = Svhn.transfer
    defaults: ClassVar = Svhn.defaults
    default_epochs = Svhn.default_epochs

    @property
    def sha256(self) -> str:
        """Return the sha256 of all that decides the pixels: sizes, `version` of the drawing, Pillow's version."""
        sizes = {"train": self.train_size, "test": self.test_size}
        return digest({"drawn": sizes, "pillow": version("pillow"), "version": self.version})

    @property
    def remedy(self) -> str:
        """Return what to do when it is missing, which it never is."""
        return "install gauntlet again"

    def read(self, data_dir: Path) -> Data:
        """Return the pictures; without a kept copy they are drawn, about a millisecond each."""
        import torch

        return Data(*(torch.from_numpy(array) for array in self.arrays(data_dir)))

    def cached(self, data_dir: Path) -> Path:
        """Return where this set is kept; another version of Pillow keeps its own."""
        return data_dir / "synth-digits" / f"{self.kind}-{self.sha256[:16]}.npz"

    def arrays(self, data_dir: Path) -> "list[NDArray[Any]]":
        """Return what `Data` holds, from DATA_DIR where it is kept whole, else drawn and kept."""
        path = self.cached(data_dir)
        found = _kept(path)
        if found is None:
            from core.digits import drawn

            found = [*drawn(0, self.train_size), *drawn(1, self.test_size)]
            _keep(path, found)
        return found


class SynthDigits(RenderedDigits):
    """House-number-like digits, 32 x 32 colour: several hands, colours, neighbours, bars, blur and noise."""

    kind: Literal["synth-digits"] = "synth-digits"

    title = "synth-digits"
    train_size = Svhn.train_size
    test_size = Svhn.test_size


def _kept(path: Path) -> "list[NDArray[Any]] | None":
    """Return the arrays of a kept set, None where there is none or it is not what was written."""
    import numpy as np

    try:
        if path.with_suffix(".sha256").read_text() != _sha256(path):
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in _PIECES]
    except OSError:
        return None


def _keep(path: Path, arrays: "list[NDArray[Any]]") -> None:
    """Write the arrays and, last, their checksum; a DATA_DIR that cannot be written keeps nothing."""
    import numpy as np

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    except OSError:
        return
    whole = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **dict(zip(_PIECES, arrays, strict=True)))
        whole.chmod(0o644)
        checksum = _sha256(whole)
        whole.replace(path)
        path.with_suffix(".sha256").write_text(checksum)
    except OSError:
        whole.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
