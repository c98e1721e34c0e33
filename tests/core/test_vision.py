"""The guard around torchvision: on the real one in fresh processes, and on stand-ins."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from core import vision

ROOT = Path(__file__).resolve().parents[2]


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA: torchvision needs no guard beside it")
def test_beside_cpu_torch_the_plain_import_fails_and_the_guarded_one_works():
    run("""
try:
    import torchvision
except RuntimeError as error:
    assert str(error) == "operator torchvision::nms does not exist", error
else:
    raise AssertionError("torchvision imports by itself: the guard can go")
import gc
import torch
from core.vision import torchvision
guarded = torchvision()
assert torchvision() is guarded
gc.collect()
assert torch.ops.torchvision.nms and torch.ops.torchvision.qnms  # the definitions outlive the call
from torchvision import datasets, models, transforms, utils
assert datasets.MNIST and models.resnet18 and transforms.ToTensor and utils.make_grid
""")


def test_beside_a_torch_with_cuda_nothing_is_defined():
    run("""
import torch
from core import vision
failed = torch.version.cuda is None
torch.version.cuda = torch.version.cuda or "13.0"
try:
    vision.torchvision()
except RuntimeError as error:
    assert failed and str(error) == "operator torchvision::nms does not exist", error
assert vision._kept == []
assert hasattr(torch.ops.torchvision, "nms") is not failed
""")


@pytest.fixture
def no_definition(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.library, "Library", lambda *_: pytest.fail("an operator was defined"))


@pytest.mark.usefixtures("no_definition")
def test_a_torchvision_that_imports_by_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    built_for_this_torch = ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", built_for_this_torch)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert vision.torchvision() is built_for_this_torch


@pytest.mark.usefixtures("no_definition")
@pytest.mark.parametrize(
    ("cuda", "message"), [(None, "disk on fire"), ("13.0", "operator torchvision::nms does not exist")]
)
def test_any_other_failure_of_the_import_is_passed_on(cuda: str | None, message: str, monkeypatch: pytest.MonkeyPatch):
    class Failing:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "torchvision":
                raise RuntimeError(message)

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Failing, *sys.meta_path])
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(RuntimeError, match=message):
        vision.torchvision()
