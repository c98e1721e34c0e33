"""Datasets: the contract of every kind, the loaders on small files in the official formats, and the real files."""

import gzip
import hashlib
import io
import os
import pickle
import runpy
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from core.attacks import ATTACKS
from core.datasets import DATASETS
from core.datasets.base import Dataset, transfer_attack
from core.datasets.cifar10 import Cifar10
from core.datasets.cifar10_jpeg import Cifar10Jpeg, decode
from core.datasets.fashion_mnist import FashionMnist
from core.datasets.mnist import Mnist
from core.datasets.mnist_mini import MnistMini
from core.datasets.svhn import Svhn
from core.datasets.synth_digits import RenderedDigits
from core.defenses import DEFENSES
from core.errors import DatasetMissing
from core.networks import NETWORKS
from core.vision import torchvision

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("DATA_DIR", ROOT.parent / "shared" / "data"))
D = TypeVar("D", bound=Dataset)
PUBLISHED = {name: kind for name, kind in DATASETS.items() if not issubclass(kind, RenderedDigits)}
"""The sets that are files; the others are drawn (tests/core/test_digits.py)."""
RANDOM = np.random.default_rng(0)
GOLDEN = {
    "cifar10": "65af7bf854e7b489",
    "cifar10-jpeg": "278e981dab4cbe4c",
    "fashion-mnist": "2330c0a584a44439",
    "mnist": "4d67779b9ce6387b",
    "mnist-mini": "aad74649323c0505",
    "svhn": "79c517aa523583ab",
    "synth-digits": "e3a69dcf57d4f92b",
    "synth-digits-mini": "9c63a1f8655c165b",
}


def needs(dataset: Dataset) -> pytest.MarkDecorator:
    reason = f"{dataset.title} is not in DATA_DIR ({REAL}); set it to a folder that has {next(iter(dataset.checksums))}"
    return pytest.mark.skipif(bool(dataset.missing(REAL)), reason=reason)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def write(folder: Path, files: dict[str, bytes]) -> dict[str, str]:
    """Write the files and return the checksums that pin them."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return {name: md5(content) for name, content in files.items()}


def pinned(kind: type[D], checksums: dict[str, str]) -> D:
    """Return the dataset with other checksums than the published ones."""
    return type(kind.__name__, (kind,), {"checksums": checksums, "__annotations__": {"checksums": ClassVar}})()


def pictures(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


class TestEveryKind:
    def test_the_folder_is_the_list(self):
        assert set(DATASETS) >= {"mnist", "mnist-mini", "fashion-mnist", "svhn", "cifar10", "cifar10-jpeg"}

    def test_names_hashes_and_missing_files_are_known_without_torch(self):
        script = (
            "import sys; from pathlib import Path; from core.datasets import DATASETS\n"
            "for kind in DATASETS.values(): kind().identity(), kind().missing(Path('.')), kind().remedy\n"
            "assert not {'torch', 'torchvision', 'numpy', 'PIL', 'scipy'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)

    @pytest.mark.parametrize("kind", DATASETS.values(), ids=DATASETS)
    def test_declares_itself_whole(self, kind: type[Dataset]):
        assert kind.title and kind.train_size > 0 and kind.test_size > 0 and kind.real in (True, False)
        assert len(set(kind.classes)) == len(kind.classes) >= 2
        assert kind.network in NETWORKS
        assert (kind.default_iterations is None) != (kind.default_epochs is None)
        assert bool(kind.checksums) == (kind in PUBLISHED.values())
        assert all(len(checksum) == 32 for checksum in kind.checksums.values())

    @pytest.mark.parametrize("kind", DATASETS.values(), ids=DATASETS)
    def test_the_panel_is_made_of_attacks_at_its_eps(self, kind: type[Dataset]):
        attacks = [ATTACKS[entry["kind"]].model_validate(entry) for entry in kind.panel]
        assert attacks[0].kind == "none"
        assert Fraction(kind.eps) in [attack.eps for attack in attacks[1:]]
        assert len({attack.identity() for attack in attacks}) == len(attacks)
        assert kind.transfer in kind.panel
        assert kind.transfer == transfer_attack(kind.panel)

    @pytest.mark.parametrize("kind", DATASETS.values(), ids=DATASETS)
    def test_its_own_defaults_are_fields_of_the_kinds_they_name(self, kind: type[Dataset]):
        for name, fields in kind.defaults.items():
            spec = {**ATTACKS, **DEFENSES}[name].model_validate({"kind": name, **fields})
            assert fields.get("eps1", kind.eps) == kind.eps
            assert spec.model_fields_set == {"kind", *fields}

    def test_default_panels_are_those_of_the_design(self):
        assert Mnist.panel == MnistMini.panel == FashionMnist.panel
        assert Mnist.panel == [
            {"kind": "none"},
            {"kind": "fgsm", "eps": "0.3"},
            {"kind": "fgsm", "eps": "0.4"},
            {"kind": "ifgsm", "eps": "0.3", "steps": 10},
            {"kind": "ifgsm", "eps": "0.3", "steps": 30},
            {"kind": "pgd", "eps": "0.3", "steps": 40, "step_size": "0.01", "restarts": 1},
        ]
        assert [(attack.get("eps"), attack.get("steps")) for attack in Svhn.panel] == [
            (None, None), ("24/255", None), ("24/255", 10), ("24/255", 20), ("24/255", 30), ("24/255", 40)
        ]  # fmt: skip
        assert {attack.get("eps") for attack in Cifar10.panel[1:]} == {"8/255"}
        assert Mnist.transfer["steps"] == Svhn.transfer["steps"] == Cifar10.transfer["steps"] == 30

    def test_hashes_are_those_that_stored_results_carry(self):
        # A change here makes every stored result of that dataset unreachable: right when its files changed, never else.
        assert {name: DATASETS[name]().sha256[:16] for name in GOLDEN} == GOLDEN

    def test_other_files_are_another_identity(self):
        other = pinned(Mnist, {**Mnist.checksums, "MNIST/raw/train-images-idx3-ubyte": "0" * 32})
        assert other.sha256 != Mnist().sha256
        assert type("Read", (Mnist,), {"version": 2})().sha256 != Mnist().sha256  # the same files, read otherwise
        assert other.identity() != Mnist().identity()

    @pytest.mark.parametrize(
        "kind", [k for n, k in PUBLISHED.items() if n != "mnist-mini"], ids=lambda kind: kind.title
    )
    def test_an_absent_file_is_named_with_its_remedy(self, kind: type[Dataset], tmp_path: Path):
        first = next(iter(kind.checksums))
        assert kind().missing(tmp_path) == list(kind.checksums)
        with pytest.raises(DatasetMissing) as caught:
            kind().load(tmp_path)
        assert first in str(caught.value)
        assert f", or restart the service with DATA_DIR set to a folder that has {first}" in str(caught.value)
        assert str(caught.value).endswith(kind.instead)

    def test_a_folder_that_is_not_there_or_is_a_file_misses_everything(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        for folder in (tmp_path / "nowhere", tmp_path / "file"):
            assert Mnist().missing(folder) == list(Mnist.checksums)

    @pytest.mark.parametrize("kind", PUBLISHED.values(), ids=PUBLISHED)
    def test_a_changed_file_is_refused_before_anything_reads_it(
        self, kind: type[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(kind, "folder", lambda self, data_dir: data_dir)
        monkeypatch.setattr(
            kind, "read", lambda self, data_dir: pytest.fail("read a file that is not the published one")
        )
        write(tmp_path, dict.fromkeys(kind.checksums, b"changed"))
        first, expected = next(iter(kind.checksums.items()))
        with pytest.raises(DatasetMissing, match="is not the published file of") as caught:
            kind().load(tmp_path)
        assert first in str(caught.value)
        assert md5(b"changed") in str(caught.value) and expected in str(caught.value)

    def test_a_file_that_cannot_be_read_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        dataset = pinned(Mnist, write(tmp_path, {"a": b"a"}))
        monkeypatch.setattr(Path, "open", failing(PermissionError(13, "Permission denied")))
        with pytest.raises(DatasetMissing, match="a cannot be read: Permission denied"):
            dataset.load(tmp_path)
        monkeypatch.setattr(Path, "is_file", failing(PermissionError(13, "Permission denied")))
        assert dataset.missing(tmp_path) == ["a"]


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


class TestMnistMini:
    def test_loads_without_a_data_folder(self):
        mini = MnistMini()
        nowhere = Path("/nowhere")
        assert mini.missing(nowhere) == []
        data = mini.load(nowhere)
        assert data.train_images.shape == (10_000, 1, 28, 28) and data.test_images.shape == (2_000, 1, 28, 28)
        assert data.train_images.dtype == data.test_images.dtype == torch.uint8
        assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
        assert data.train_labels.shape == (10_000,) and data.test_labels.shape == (2_000,)

    def test_every_class_has_about_its_share_in_any_prefix_that_is_used(self):
        data = MnistMini().load(Path("/nowhere"))
        for labels, least in ((data.train_labels, 900), (data.test_labels, 150), (data.test_labels[:300], 20)):
            assert min(torch.bincount(labels, minlength=10)) >= least

    def test_is_small(self):
        assert (ROOT / "core" / "datasets" / "mnist_mini.npz").stat().st_size <= 2_500_000

    def test_a_damaged_installation_is_told_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(MnistMini, "folder", lambda self, data_dir: tmp_path)
        with pytest.raises(DatasetMissing, match=r"needs mnist_mini.npz, .*: install gauntlet again$"):
            MnistMini().load(tmp_path)

    @needs(Mnist())
    def test_is_every_sixth_and_fifth_image_of_mnist_bit_for_bit(self):
        mini, whole = MnistMini().load(Path("/nowhere")), Mnist().load(REAL)
        train = torch.arange(0, 60_000, 6).reshape(2, -1).T.flatten()
        test = torch.arange(0, 10_000, 5).reshape(2, -1).T.flatten()
        assert train[:4].tolist() == [0, 30_000, 6, 30_006]
        assert torch.equal(mini.train_images, whole.train_images[train])
        assert torch.equal(mini.train_labels, whole.train_labels[train])
        assert torch.equal(mini.test_images, whole.test_images[test])
        assert torch.equal(mini.test_labels, whole.test_labels[test])

    @needs(Mnist())
    def test_the_script_makes_the_shipped_arrays_and_the_same_bytes_each_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        for name in ("a.npz", "b.npz"):
            given = ["--data-dir", str(REAL), "--output", str(tmp_path / name)]
            monkeypatch.setattr(sys, "argv", ["make_mnist_mini.py", *given])
            runpy.run_path(str(ROOT / "scripts" / "make_mnist_mini.py"), run_name="__main__")
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        made, shipped = np.load(tmp_path / "a.npz"), np.load(ROOT / "core" / "datasets" / "mnist_mini.npz")
        assert made.files == shipped.files
        assert all(np.array_equal(made[name], shipped[name]) for name in made.files)


def idx(array: np.ndarray) -> bytes:
    """Return an array of bytes in the IDX format of MNIST's publishers."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def idx_files() -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    arrays = {
        "train-images-idx3-ubyte": pictures(7, 28, 28),
        "train-labels-idx1-ubyte": np.array([5, 0, 4, 1, 9, 2, 1], np.uint8),
        "t10k-images-idx3-ubyte": pictures(3, 28, 28),
        "t10k-labels-idx1-ubyte": np.array([7, 2, 1], np.uint8),
    }
    return {name: idx(array) for name, array in arrays.items()}, arrays


@pytest.mark.parametrize(("kind", "folder"), [(Mnist, "MNIST"), (FashionMnist, "FashionMNIST")])
class TestIdx:
    def test_reads_unpacked_files(self, kind: type[Dataset], folder: str, tmp_path: Path):
        files, arrays = idx_files()
        checksums = write(tmp_path, {f"{folder}/raw/{name}": content for name, content in files.items()})
        assert list(checksums) == list(kind.checksums)
        data = pinned(kind, checksums).load(tmp_path)
        found = (data.train_images[:, 0], data.train_labels, data.test_images[:, 0], data.test_labels)
        for tensor, array in zip(found, arrays.values(), strict=True):
            assert np.array_equal(tensor.numpy(), array)
        assert data.train_images.shape == (7, 1, 28, 28) and data.train_images.dtype == torch.uint8
        assert data.train_labels.dtype == torch.int64

    def test_files_of_torchvisions_first_releases_are_not_preferred(
        self, kind: type[Dataset], folder: str, tmp_path: Path
    ):
        files, arrays = idx_files()
        checksums = write(tmp_path, {f"{folder}/raw/{name}": content for name, content in files.items()})
        (tmp_path / folder / "processed").mkdir()
        unchecked = (torch.zeros(7, 28, 28, dtype=torch.uint8), torch.zeros(7, dtype=torch.int64))
        for name in ("training.pt", "test.pt"):
            torch.save(unchecked, tmp_path / folder / "processed" / name)
        data = pinned(kind, checksums).load(tmp_path)
        assert np.array_equal(data.train_images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])

    def test_archives_that_are_there_are_unpacked_without_a_download(
        self, kind: type[Dataset], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        files, _ = idx_files()
        packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}
        write(tmp_path / folder / "raw", packed)
        source = getattr(torchvision().datasets, folder)
        monkeypatch.setattr(source, "resources", [(name, md5(content)) for name, content in packed.items()])
        monkeypatch.setattr(source, "mirrors", ["http://127.0.0.1:9/"])
        dataset = pinned(kind, {f"{folder}/raw/{name}": md5(content) for name, content in files.items()})
        with pytest.raises(DatasetMissing, match="run `gauntlet data"):
            dataset.load(tmp_path)
        assert len(dataset.load(tmp_path, download=True).train_images) == 7


class TestDownload:
    def test_fetches_what_is_missing_then_checks_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        files, _ = idx_files()
        named = {f"MNIST/raw/{name}": content for name, content in files.items()}
        monkeypatch.setattr(Mnist, "fetch", lambda self, data_dir: write(data_dir, named))
        assert (
            len(pinned(Mnist, {name: md5(c) for name, c in named.items()}).load(tmp_path, download=True).test_images)
            == 3
        )
        with pytest.raises(DatasetMissing, match="is not the published file"):
            Mnist().load(tmp_path, download=True)

    def test_is_not_tried_where_nothing_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(MnistMini, "fetch", failing(AssertionError("downloaded")))
        MnistMini().load(tmp_path, download=True)

    @pytest.mark.parametrize("kind", [Mnist, FashionMnist, Svhn, Cifar10])
    def test_a_failure_names_its_cause_and_the_remedy(
        self, kind: type[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("urllib.request.urlopen", failing(ConnectionRefusedError(111, "Connection refused")))
        (tmp_path / "was there").mkdir()
        with pytest.raises(DatasetMissing, match=r"could not be downloaded \(.+\); put into ") as caught:
            kind().load(tmp_path / "data", download=True)
        for name in kind.checksums:
            assert name in str(caught.value)
        assert f"put into {kind().folder(tmp_path / 'data')}: " in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["was there"]

    def test_a_set_that_no_address_offers_says_so(self, tmp_path: Path):
        with pytest.raises(DatasetMissing, match="no public address has this copy"):
            Cifar10Jpeg().load(tmp_path, download=True)


def test_svhn_reads_the_official_mat_files_and_turns_label_10_into_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = {"train": pictures(6, 3, 32, 32), "test": pictures(2, 3, 32, 32)}
    labels = {"train": [1, 10, 9, 10, 2, 3], "test": [10, 5]}
    files: dict[str, bytes] = {}
    for split, batch in images.items():
        stream = io.BytesIO()
        official = {"X": batch.transpose(2, 3, 1, 0), "y": np.array(labels[split], np.uint8)[:, None]}
        scipy.io.savemat(stream, official, do_compression=True)
        files[f"{split}_32x32.mat"] = stream.getvalue()
    checksums = write(tmp_path, files)
    assert list(checksums) == list(Svhn.checksums)
    splits = {split: ["", f"{split}_32x32.mat", checksums[f"{split}_32x32.mat"]] for split in images}
    monkeypatch.setattr(torchvision().datasets.SVHN, "split_list", splits)
    data = pinned(Svhn, checksums).load(tmp_path)
    assert np.array_equal(data.train_images.numpy(), images["train"]) and data.train_images.is_contiguous()
    assert np.array_equal(data.test_images.numpy(), images["test"])
    assert data.train_labels.tolist() == [1, 0, 9, 0, 2, 3] and data.test_labels.tolist() == [0, 5]
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64


def test_the_pinned_checksums_are_those_torchvision_publishes():
    sets = torchvision().datasets
    assert Svhn.checksums == {file: checksum for _, file, checksum in list(sets.SVHN.split_list.values())[:2]}
    published = [*sets.CIFAR10.train_list, *sets.CIFAR10.test_list]
    published.append([sets.CIFAR10.meta["filename"], sets.CIFAR10.meta["md5"]])
    assert Cifar10.checksums == {f"cifar-10-batches-py/{file}": checksum for file, checksum in published}


class TestCifar10:
    def test_reads_the_official_batches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        batches = [pictures(4, 3, 32, 32) for _ in range(6)]
        files: dict[str, bytes] = {}
        for path, batch in zip(Cifar10.checksums, batches, strict=False):
            files[path] = pickle.dumps({"data": batch.reshape(4, -1), "labels": [3, 1, 4, 9]})
        files["cifar-10-batches-py/batches.meta"] = pickle.dumps({"label_names": list(Cifar10.classes)})
        checksums = write(tmp_path, files)
        listed = [[Path(path).name, checksum] for path, checksum in checksums.items()]
        source = torchvision().datasets.CIFAR10
        monkeypatch.setattr(source, "train_list", listed[:5])
        monkeypatch.setattr(source, "test_list", listed[5:6])
        monkeypatch.setattr(source, "meta", {**source.meta, "md5": listed[6][1]})
        data = pinned(Cifar10, checksums).load(tmp_path)
        assert np.array_equal(data.train_images.numpy(), np.concatenate(batches[:5]))
        assert np.array_equal(data.test_images.numpy(), batches[5])
        assert data.test_labels.tolist() == [3, 1, 4, 9] and data.train_labels.dtype == torch.int64

    def test_a_forged_pickle_is_never_opened(self, tmp_path: Path):
        class Forged:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "ran",))

        write(tmp_path, {name: pickle.dumps(Forged()) for name in Cifar10.checksums})
        with pytest.raises(DatasetMissing, match="data_batch_1 is not the published file"):
            Cifar10().load(tmp_path)
        assert not (tmp_path / "ran").exists()


def jpeg(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=90)
    return stream.getvalue()


class TestCifar10Jpeg:
    def test_another_decoder_is_another_content(self, monkeypatch: pytest.MonkeyPatch):
        before = Cifar10Jpeg().sha256
        monkeypatch.setattr("core.datasets.cifar10_jpeg.version", lambda package: f"{package} 99")
        assert Cifar10Jpeg().sha256 != before

    def npz(self, folder: Path, **replaced: Any) -> Cifar10Jpeg:
        arrays: dict[str, Any] = {}
        for split, count in (("train", 4), ("test", 2)):
            files = [jpeg(np.full((32, 32, 3), 40 * i, np.uint8)) for i in range(count)]
            arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
            arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
            arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)
        stream = io.BytesIO()
        np.savez(stream, **{**arrays, **replaced})
        return pinned(Cifar10Jpeg, write(folder, {"cifar10-jpeg/cifar10_jpeg.npz": stream.getvalue()}))

    def test_decodes_both_splits(self, tmp_path: Path):
        data = self.npz(tmp_path).load(tmp_path)
        assert data.train_images.shape == (4, 3, 32, 32) and data.test_images.shape == (2, 3, 32, 32)
        assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
        assert [int(image.float().mean().round()) for image in data.train_images] == [0, 40, 80, 120]
        assert data.test_labels.tolist() == [0, 1]

    def test_pickled_arrays_are_refused(self, tmp_path: Path):
        dataset = self.npz(tmp_path, train_jpeg=np.array([print], dtype=object))
        with pytest.raises(ValueError, match="allow_pickle=False"):
            dataset.load(tmp_path)

    def test_says_that_it_is_a_lossy_copy(self):
        assert "JPEG" in Cifar10Jpeg.title and "not comparable" in Cifar10Jpeg.note

    @needs(Cifar10Jpeg())
    def test_the_real_file_is_the_pinned_one_and_decodes(self):
        Cifar10Jpeg().verify(REAL)
        with np.load(REAL / "cifar10-jpeg" / "cifar10_jpeg.npz", allow_pickle=False) as arrays:
            assert tuple(arrays["class_names"]) == Cifar10Jpeg.classes
            assert np.bincount(arrays["test_labels"]).tolist() == [1_000] * 10
            assert len(arrays["train_labels"]) == Cifar10Jpeg.train_size
            images = decode(arrays["test_jpeg"].tobytes(), arrays["test_offsets"][:101].tolist())
        assert images.shape == (100, 3, 32, 32)
        assert 30 < images.float().std() < 90  # photographs, not noise of a wrong offset


@pytest.mark.parametrize("kind", [Mnist, FashionMnist])
def test_the_real_files_load_as_an_independent_reader_reads_them(kind: type[Dataset]):
    if kind().missing(REAL):
        pytest.skip(f"{kind.title} is not in DATA_DIR ({REAL})")
    data = kind().load(REAL)
    raw = {name.split("/")[-1]: np.fromfile(REAL / name, np.uint8) for name in kind.checksums}
    assert np.array_equal(data.train_images.numpy().ravel(), raw["train-images-idx3-ubyte"][16:])
    assert np.array_equal(data.test_images.numpy().ravel(), raw["t10k-images-idx3-ubyte"][16:])
    assert np.array_equal(data.train_labels.numpy(), raw["train-labels-idx1-ubyte"][8:])
    assert np.array_equal(data.test_labels.numpy(), raw["t10k-labels-idx1-ubyte"][8:])
    assert data.train_images.shape == (kind.train_size, *kind.shape)
    assert data.test_images.shape == (kind.test_size, *kind.shape)
