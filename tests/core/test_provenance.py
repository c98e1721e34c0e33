"""What results say of the code they were computed with."""

import subprocess
from pathlib import Path

import pytest

from core import provenance
from core.stages.base import Outcome


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.delenv("GAUNTLET_COMMIT", raising=False)
    return tmp_path


def test_an_image_says_what_it_was_built_from(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    assert provenance.commit() is None
    monkeypatch.setenv("GAUNTLET_COMMIT", "")
    assert provenance.commit() is None, "a build without the argument"
    monkeypatch.setenv("GAUNTLET_COMMIT", "5e1f")
    assert provenance.commit() == "5e1f"


def test_a_checkout_says_it_itself_and_whether_files_differ(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GAUNTLET_COMMIT", "5e1f")
    file = checkout / "code.py"
    file.write_text("")
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "code.py"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    clean = provenance.commit()
    assert clean is not None and len(clean) == 40
    file.write_text("changed")
    assert provenance.commit() == clean + "+changes"
    file.write_text("")
    assert provenance.commit() == clean
    (checkout / "core").mkdir()
    (checkout / "core" / "new_kind.py").write_text("")
    assert provenance.commit() == clean + "+changes", "a kind is there as soon as its file is"


def test_a_processor_beside_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "device_class", lambda: "cuda")
    monkeypatch.setattr(provenance, "environment", lambda: {"device": "a GPU", "torch": "2"})
    made = {device: provenance.made_in(Outcome({}), device) for device in ("cpu", "cuda")}
    assert made["cuda"] == {"device": "a GPU", "torch": "2", "seconds": None}
    assert made["cpu"] == {**made["cuda"], "device": provenance.processor_name()}
