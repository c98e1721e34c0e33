"""synth-digits: each picture by its index alone, the set kept whole, and honest about what it is."""

import hashlib
import resource
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from core import digits
from core.datasets import DATASETS
from core.datasets.svhn import Svhn
from core.datasets.synth_digits import SynthDigits
from core.datasets.synth_digits_mini import SynthDigitsMini


class Few(SynthDigits):
    kind: Literal["few"] = "few"
    title = "few"
    train_size = 6
    test_size = 4


PICTURES = "34dfb2e27f7ead27683fd7a9ffd0aa520e6946a47a559eb64bdfba82b52cf704"


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


class TestPictures:
    def test_they_are_those_of_this_version_and_this_pillow(self):
        """A change here is another set: count `version` of RenderedDigits up. A new Pillow is another key by itself."""
        images, labels = digits.drawn(0, 50)
        assert labels[:10].tolist() == [6, 8, 0, 8, 8, 3, 4, 0, 7, 5]
        assert sha256(images) == PICTURES

    def test_a_picture_knows_no_other(self):
        images, labels = digits.drawn(0, 30)
        for index in (0, 7, 29):
            image, label = digits.picture(0, index)
            assert np.array_equal(images[index], image) and labels[index] == label

    def test_another_process_draws_the_same(self):
        script = (
            "from core import digits; import hashlib\n"
            "print(hashlib.sha256(digits.drawn(1, 20)[0].tobytes()).hexdigest())"
        )
        found = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.strip()
        assert found == sha256(digits.drawn(1, 20)[0])

    def test_training_and_test_pictures_differ_and_none_is_there_twice(self):
        seen = [digits.picture(split, index)[0].tobytes() for split in (0, 1) for index in range(300)]
        assert len(set(seen)) == 600

    def test_every_digit_has_its_share(self):
        labels = digits.drawn(0, 1000)[1]
        assert np.bincount(labels, minlength=10).min() > 60

    @pytest.mark.parametrize("style", range(digits.STYLES))
    def test_glyphs_are_whole_and_no_two_alike(self, style: int):
        masks = [np.asarray(digits.glyph(style, digit)) for digit in range(10)]
        for mask in masks:
            assert mask.max() == 255
            assert mask[0].max() == mask[-1].max() == mask[:, 0].max() == mask[:, -1].max() == 0, "nothing is cut off"
            assert 28 <= np.flatnonzero(mask.max(1)).size <= 42
        for i in range(10):
            for j in range(i):
                assert np.abs(masks[i].astype(int) - masks[j]).mean() > 2

    def test_the_digit_stands_out(self):
        """Between its brightest and darkest pixel every picture has contrast, whatever the colours."""
        images = digits.drawn(0, 200)[0].astype(int).sum(1)
        assert (np.ptp(images.reshape(200, -1), axis=1) > 60).all()


class TestTheSet:
    def test_it_is_as_large_as_svhn_and_never_called_so(self):
        assert (SynthDigits.train_size, SynthDigits.test_size) == (Svhn.train_size, Svhn.test_size)
        assert (SynthDigits.shape, SynthDigits.network, SynthDigits.panel) == (Svhn.shape, Svhn.network, Svhn.panel)
        for kind in (SynthDigits, SynthDigitsMini):
            assert not kind.real
            assert "svhn" not in kind.title.lower() and "not SVHN" in kind.note

    def test_it_is_never_missing(self):
        for kind in ("synth-digits", "synth-digits-mini"):
            assert DATASETS[kind]().missing(Path("/nowhere")) == []

    def test_sizes_version_and_pillow_are_its_hash(self, monkeypatch: pytest.MonkeyPatch):
        known = {SynthDigits().sha256, SynthDigitsMini().sha256, Few().sha256}
        known.add(type("Later", (Few,), {"version": 2})().sha256)
        monkeypatch.setattr("core.datasets.synth_digits.version", lambda package: f"{package} 99")
        assert len(known | {Few().sha256}) == 5

    def test_a_larger_set_begins_with_the_smaller(self, tmp_path: Path):
        few = Few().load(tmp_path)
        images, labels = digits.drawn(0, 10)
        assert np.array_equal(few.train_images.numpy(), images[:6])
        assert np.array_equal(few.train_labels.numpy(), labels[:6])
        assert np.array_equal(few.test_images.numpy(), digits.drawn(1, 4)[0])
        assert few.train_images.dtype == torch.uint8 and few.train_labels.dtype == torch.int64


class TestKeeping:
    def test_it_is_drawn_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        first = Few().load(tmp_path)
        monkeypatch.setattr(digits, "drawn", lambda *_: pytest.fail("drawn again"))
        again = Few().load(tmp_path)
        assert torch.equal(first.train_images, again.train_images)
        assert torch.equal(first.test_labels, again.test_labels)
        assert sorted(path.suffix for path in Few().cached(tmp_path).parent.iterdir()) == [".npz", ".sha256"]

    @pytest.mark.parametrize("spoil", ["cut", "other", "unsigned"])
    def test_a_spoilt_file_is_drawn_anew(self, tmp_path: Path, spoil: str):
        first, path = Few().load(tmp_path), Few().cached(tmp_path)
        if spoil == "unsigned":
            path.with_suffix(".sha256").unlink()
        else:
            whole = path.read_bytes()
            path.write_bytes(whole[:-50] if spoil == "cut" else whole[:-1] + b"x")
        assert torch.equal(Few().load(tmp_path).train_images, first.train_images)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.with_suffix(".sha256").read_text()

    def test_a_folder_that_cannot_be_written_keeps_nothing(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        assert len(Few().load(tmp_path / "file").train_images) == 6

    def test_other_users_of_the_machine_may_read_it(self, tmp_path: Path):
        Few().load(tmp_path)
        assert Few().cached(tmp_path).stat().st_mode & 0o777 == 0o644

    def test_a_file_that_does_not_fit_leaves_nothing(self, tmp_path: Path):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            assert len(Few().load(tmp_path).train_images) == 6
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(Few().cached(tmp_path).parent.iterdir()) == []

    def test_another_pillow_keeps_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        before = Few().cached(tmp_path)
        monkeypatch.setattr("core.datasets.synth_digits.version", lambda package: "0")
        assert Few().cached(tmp_path) != before


def test_pictures_are_pillows_colour_images():
    image, _ = digits.picture(0, 0)
    assert Image.fromarray(image.transpose(1, 2, 0)).mode == "RGB"
