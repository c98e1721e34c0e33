"""Artifacts appear whole or not at all, and are never handed out altered."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.errors import ArtifactCorrupt, SpecError
from store.artifacts import ArtifactStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store((tmp_path / "with space").as_uri())


def files(store: ArtifactStore) -> list[Path]:
    root = store.path("0" * 64).parents[2]
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", [b"", b"weights", os.urandom(300_000)])
def test_what_was_put_comes_back(store: ArtifactStore, data: bytes):
    sha256 = store.put(data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert store.get(sha256) == data
    assert files(store) == [store.path(sha256)]


@pytest.mark.parametrize("damage", ["truncate", "extend", "flip", "empty", "remove"])
def test_damage_is_never_handed_out_and_is_mended_by_the_next_put(store: ArtifactStore, damage: str):
    data = b"weights of a network"
    path = store.path(store.put(data))
    harm = {"truncate": data[:-1], "extend": data + b"!", "flip": b"W" + data[1:], "empty": b""}
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(harm[damage])
    with pytest.raises(ArtifactCorrupt, match="missing" if damage == "remove" else "altered"):
        store.get(path.name)
    assert store.put(data) == path.name
    assert store.get(path.name) == data


def test_an_unknown_artifact_is_missing(store: ArtifactStore):
    with pytest.raises(ArtifactCorrupt, match="missing"):
        store.get("0" * 64)


def test_putting_twice_writes_once(store: ArtifactStore):
    path = store.path(store.put(b"same"))
    first = path.stat().st_ino
    store.put(b"same")
    assert path.stat().st_ino == first


def test_concurrent_puts_of_the_same_and_of_other_bytes(store: ArtifactStore):
    contents = [bytes([number % 5]) * 200_000 for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(store.put, contents))
    assert [store.get(name) for name in names] == contents
    assert len(files(store)) == 5, "temporary files were left"


def test_a_write_that_fails_leaves_nothing(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.put(b"weights")
    assert files(store) == []
    with pytest.raises(ArtifactCorrupt):
        store.get(hashlib.sha256(b"weights").hexdigest())


def test_a_reader_never_sees_half_a_file(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    """The name appears only after the bytes are on disk."""
    seen: list[bool] = []
    sync = os.fsync
    data = b"x" * 100_000
    path = store.path(hashlib.sha256(data).hexdigest())

    def look(descriptor: int) -> None:
        seen.append(path.exists())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    store.put(data)
    assert seen == [False, True], "first the file, under another name; then the folder"


def test_a_disk_that_does_not_keep_what_was_written_is_noticed(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    replace = Path.replace

    def lose_a_byte(self: Path, target: Path) -> Path:
        found = replace(self, target)
        found.write_bytes(found.read_bytes()[:-1])
        return found

    monkeypatch.setattr(Path, "replace", lose_a_byte)
    with pytest.raises(ArtifactCorrupt, match="read back"):
        store.put(b"weights")


@pytest.mark.parametrize("url", ["s3://bucket/folder", "/plain/path", "http://host/x", ""])
def test_other_places_are_refused(url: str):
    with pytest.raises(SpecError, match="ARTIFACT_URL") as refused:
        open_store(url)
    assert refused.value.path == ("ARTIFACT_URL",)
