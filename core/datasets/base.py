"""What every dataset is: a published set of files, pinned by checksums, and the defaults of benchmarks on it.

DATA_DIR is the root that torchvision's own dataset classes take, so a folder they filled is found as it is.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from core.canonical import digest
from core.errors import DatasetMissing
from core.kinds import Kind

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Data:
    """Images as uint8 [N, C, H, W] and labels as int64 [N], on the CPU, in the published order."""

    train_images: "Tensor"
    train_labels: "Tensor"
    test_images: "Tensor"
    test_labels: "Tensor"


class Dataset(Kind):
    """Base of every dataset; a kind without fields, since published files leave nothing to choose."""

    title: ClassVar[str]
    note: ClassVar[str] = ""
    """What a reader of results must know about these images; shown wherever they are."""
    real: ClassVar[bool] = True
    """False for images made by a program: results on them are never called by a real set's name."""
    in_paper: ClassVar[bool] = False
    """Whether the defaults of benchmarks are the paper's; others are ours, in its manner."""
    stands_for: ClassVar[str] = ""
    """Kind of the dataset that this one is a smaller or another form of, and whose protocol it is measured by."""
    shape: ClassVar[tuple[int, int, int]]
    """Channels, height, width."""
    classes: ClassVar[tuple[str, ...]]
    train_size: ClassVar[int]
    test_size: ClassVar[int]
    first_images: ClassVar[str] = ""
    """What the first test images are, where the order is not a random one and they are no sample of all."""
    checksums: ClassVar[Mapping[str, str]]
    """Path of each official file below `folder` -> its md5, which is what the publishers and torchvision print."""
    source: ClassVar[str]
    """How to get the files, as the imperative that follows "needs ..." in an error."""
    instead: ClassVar[str] = ""
    """What to take where they cannot be had."""

    network: ClassVar[str]
    eps: ClassVar[str]
    panel: ClassVar[list[dict[str, Any]]]
    transfer: ClassVar[dict[str, Any]]
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Kind of attack or defense -> fields whose defaults differ here from the kind's own, which are MNIST's.

    `eps` needs no entry: left out, it is the dataset's for every kind that has one.
    """
    default_iterations: ClassVar[int | None] = None
    default_epochs: ClassVar[int | None] = None
    """Exactly one of the two is set; batches are of 256."""

    @property
    def sha256(self) -> str:
        """Return the sha256 of the pinned checksums and of `version`, which counts changes of how the files are read.

        It is the dataset's part of a stage key, and needs no file on disk.
        """
        return digest({"checksums": dict(self.checksums), "version": self.version})

    @property
    def remedy(self) -> str:
        """Return what to do when files are missing, as the second half of a sentence."""
        instead = f", or {self.instead}" if self.instead else ""
        folder = f"a folder that has {next(iter(self.checksums))}"
        return f"{self.source}, or restart the service with DATA_DIR set to {folder}{instead}"

    def first(self, limit: int | None) -> int | None:
        """Return `limit` where it shortens the test set, else None, so that all of it has one name."""
        return limit if limit is not None and limit < self.test_size else None

    def canonical(self) -> dict[str, Any]:
        """Return the spec with the hash of its files, so that other files are another identity."""
        return {**super().canonical(), "sha256": self.sha256}

    def folder(self, data_dir: Path) -> Path:
        """Return the folder that `checksums` count from."""
        return data_dir

    def missing(self, data_dir: Path) -> list[str]:
        """Return the names of the files that are absent; looks at names only, opens nothing."""
        return [name for name in self.checksums if not _is_file(self.folder(data_dir) / name)]

    def verify(self, data_dir: Path) -> None:
        """Return once every file is there and is the published one.

        Raises:
            DatasetMissing: a file is absent, unreadable, or has another md5.
        """
        for name in self.missing(data_dir):
            raise DatasetMissing(f"{self.title} needs {name}, which is not in {self.folder(data_dir)}: {self.remedy}")
        for name, expected in self.checksums.items():
            path = self.folder(data_dir) / name
            found = _md5(path)
            if found != expected:
                raise DatasetMissing(
                    f"{path} is not the published file of {self.title} (md5 {found}, expected {expected}): "
                    f"remove it, then {self.remedy}"
                )

    @final
    def load(self, data_dir: Path, *, download: bool = False) -> Data:
        """Return the images and labels of both splits, read only after every file matched its checksum.

        Raises:
            DatasetMissing: a file is absent or not the published one, or the download failed.
        """
        if download and self.missing(data_dir):
            self._download(data_dir)
        self.verify(data_dir)
        return self.read(data_dir)

    def _download(self, data_dir: Path) -> None:
        """Return once the files are there; where they cannot be had, no empty folder is left."""
        new: set[Path] = set()
        try:
            paths = [self.folder(data_dir) / name for name in self.missing(data_dir)]
            new = {folder for path in paths for folder in path.parents if not folder.exists()}
            self.fetch(data_dir)
        except (OSError, RuntimeError) as error:
            for folder in sorted(new, reverse=True):  # the innermost first
                with suppress(OSError):
                    folder.rmdir()
            why = " ".join(str(error).split())
            files = ", ".join(self.missing(data_dir))
            instead = f", or {self.instead}" if self.instead else ""
            said = f"{self.title} could not be downloaded ({why}); put into {self.folder(data_dir)}: {files}{instead}"
            raise DatasetMissing(said) from error

    def fetch(self, data_dir: Path) -> None:
        """Return once the official files were downloaded; sets without a download source do nothing."""

    def read(self, data_dir: Path) -> Data:
        """Return the images and labels; called only with verified files."""
        raise NotImplementedError


def attack_panel(*eps: str, iterations: tuple[int, ...], pgd_step: str) -> list[dict[str, Any]]:
    """Return the default panel: clean, FGSM at each eps, then IFGSM and PGD-40 with one random start at the first."""
    return [
        {"kind": "none"},
        *({"kind": "fgsm", "eps": radius} for radius in eps),
        *({"kind": "ifgsm", "eps": eps[0], "steps": steps} for steps in iterations),
        {"kind": "pgd", "eps": eps[0], "steps": 40, "step_size": pgd_step, "restarts": 1},
    ]


def defaults_at(eps: str, second: str, **e2sad: Any) -> dict[str, dict[str, Any]]:
    """Return the defaults of attacks and defenses where images are attacked within `eps`, e2SAD's second step `second`.

    The paper trains with ten IFGSM steps there (section 4.2).
    """
    return {
        "ifgsm_adv": {"steps": 10},
        "pgd": {"step_size": "2/255"},
        "pgd_minmax": {"steps": 10, "step_size": "2/255"},
        "e2sad": {"eps1": eps, "eps2": second, **e2sad},
    }


def transfer_attack(panel: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the attack that examples for transfer are crafted with: the panel's IFGSM of most steps."""
    return max((attack for attack in panel if attack["kind"] == "ifgsm"), key=lambda attack: attack["steps"])


def checked_files_only(source: Any) -> Any:
    """Return torchvision's MNIST-like class `source` without its path to `processed/*.pt`.

    Where a folder holds those files of its first releases, torchvision prefers them; they carry no checksum.
    """

    class Checked(source):
        def _check_legacy_exist(self) -> bool:
            return False

    Checked.__name__ = source.__name__  # the folder's name
    return Checked


def read_idx(source: Any, data_dir: Path) -> Data:
    """Return both splits as torchvision's MNIST-like class `source` reads the unpacked IDX files."""
    train, test = (checked_files_only(source)(str(data_dir), train=split) for split in (True, False))
    return Data(train.data.unsqueeze(1), train.targets, test.data.unsqueeze(1), test.targets)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no permission to look
        return False


def _md5(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DatasetMissing(f"{path} cannot be read: {error.strerror}") from error
