"""A captured iteration is the eager one, bit for bit, for every defense and across a resume; only CUDA captures."""

import gc
import weakref

import pytest
import torch
from pydantic import ValidationError

from core.capture import uncollected
from core.defenses import DEFENSES
from core.errors import Interrupted
from core.execution import Execution
from core.training import Trained, Training, train
from tests.core.small import Recording, TinyNet, small, tiny_pixels

CAPTURED = Execution(device="cuda", threads=1, captured=True)
EAGER = CAPTURED.model_copy(update={"captured": False})

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run(kind: str, execution: Execution, precision: str = "float32", **others) -> Trained:
    training = Training.model_validate({"iterations": 20, "batch_size": 8, "precision": precision})
    images, labels = tiny_pixels(20)
    return train(
        small(DEFENSES[kind]), TinyNet(), training, execution, recipe="recipe", seed=0, images=images, labels=labels,
        **others,
    )  # fmt: skip


def assert_equal(first: Trained, second: Trained) -> None:
    assert first.curve == second.curve
    for name, weight in first.weights.items():
        assert torch.equal(weight, second.weights[name]), name


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("kind", sorted(DEFENSES))
def test_captured_equals_eager(kind: str, precision: str) -> None:
    assert_equal(run(kind, CAPTURED, precision), run(kind, EAGER, precision))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("kind", sorted(DEFENSES))
def test_a_captured_training_resumes_to_the_same_bits(kind: str) -> None:
    monitor = Recording(stop_at=8)
    with pytest.raises(Interrupted):
        run(kind, CAPTURED, monitor=monitor)
    (checkpoint,) = monitor.checkpoints
    assert_equal(run(kind, CAPTURED, resume=checkpoint), run(kind, CAPTURED))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("kind", sorted(DEFENSES))
def test_cuda_agrees_with_the_cpu_in_float64(kind: str) -> None:
    exact = {"threads": 1, "precision": "float64", "layout": "contiguous"}
    here = run(kind, Execution(**exact))
    there = run(kind, Execution(**exact, device="cuda", captured=True))
    for name, weight in here.weights.items():
        assert (there.weights[name] - weight).abs().max() < 1e-9, name


def test_no_garbage_is_collected_during_a_recording():
    dead: weakref.WeakSet[Cycle] = weakref.WeakSet()
    dead.add(Cycle())
    with pytest.raises(Interrupted), uncollected():
        assert not dead, "what was dead before is gone when the recording begins"
        assert not gc.isenabled()
        raise Interrupted("drain")
    assert gc.isenabled()


class Cycle:
    def __init__(self) -> None:
        self.me = self


def test_only_cuda_captures() -> None:
    with pytest.raises(ValidationError, match="captured needs device cuda"):
        Execution(captured=True)


def test_tf32_is_float32_on_the_cpu() -> None:
    cpu = Execution(threads=1)
    assert_equal(run("e2sad", cpu, "tf32"), run("e2sad", cpu))


@pytest.mark.parametrize("kind", sorted(DEFENSES))
def test_bf16_multiplies_in_bfloat16_and_keeps_float32_weights(kind: str) -> None:
    cpu = Execution(threads=1)
    half, full = run(kind, cpu, "bf16"), run(kind, cpu)
    assert_equal(half, run(kind, cpu, "bf16"))
    first_half, first_full = half.curve[0]["loss"], full.curve[0]["loss"]
    assert first_half != first_full
    assert first_half == pytest.approx(first_full, rel=2e-2)
    assert {weight.dtype for weight in half.weights.values()} == {torch.float32}
