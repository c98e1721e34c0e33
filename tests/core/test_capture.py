"""A captured iteration is the eager one, bit for bit, for every defense and across a resume; only CUDA captures."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.modules.module import register_module_forward_pre_hook

from core import portions
from core.capture import uncollected
from core.compute import computes
from core.defenses import DEFENSES
from core.errors import Interrupted
from core.execution import Execution
from core.networks import NETWORKS
from core.training import Loop, Trained, Training, train
from tests.core.small import Recording, TinyNet, small, tiny_pixels

CAPTURED = Execution(device="cuda", threads=1, captured=True)
EAGER = CAPTURED.model_copy(update={"captured": False})

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run(
    kind: str, execution: Execution, precision: str = "float32", schedule: dict[str, object] | None = None, **others
) -> Trained:
    schedule = {"iterations": 20, "batch_size": 8, "precision": precision, **(schedule or {})}
    images, labels = tiny_pixels(20)
    return train(
        small(DEFENSES[kind]), TinyNet(), Training.model_validate(schedule), execution, mathematics="recipe", seed=0,
        images=images, labels=labels, **others,
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
@pytest.mark.parametrize("others", [{"schedule": {"optimiser": "sgd"}}, {"micro_batch": 3}], ids=["sgd", "in parts"])
def test_captured_equals_eager_by_another_rule_and_in_parts(others: dict[str, object]) -> None:
    assert_equal(run("e2sad", CAPTURED, **others), run("e2sad", EAGER, **others))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("second_step", ["entropy", "noise", "uniform", "vat", "literal"])
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_captured_equals_eager_on_the_papers_networks(network: str, second_step: str) -> None:
    found = NETWORKS[network]()
    pixels = torch.randint(256, (24, *found.input_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    both = [
        train(
            DEFENSES["e2sad"].model_validate({"kind": "e2sad", "second_step": second_step}), found,
            Training(iterations=8, batch_size=8), execution, mathematics="recipe", seed=0, images=pixels,
            labels=torch.arange(24) % found.classes,
        )
        for execution in (CAPTURED, EAGER)
    ]  # fmt: skip
    assert_equal(*both)


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


class Rehearsed:
    """Graphs and streams of torch.cuda played on the CPU: what happens when, not how fast, nor with what kernels.

    A recording changes nothing, as on a device: what the iteration did to the training is undone.
    """

    def __init__(self, patch: pytest.MonkeyPatch):
        self.recording = False
        self.recorded = 0
        self.stream: object = "default"
        self._loop: Loop | None = None
        rehearsed, make, zeros = self, Loop.__init__, torch.zeros

        class Graph:
            replay: Callable[[], None]

        class Silent:
            def __init__(self, blocking: bool = False) -> None: ...
            def wait_stream(self, other: object) -> None: ...
            def synchronize(self) -> None: ...
            def record(self) -> None: ...

        def loop(self: Loop, **fields: Any) -> None:
            make(self, **fields)
            rehearsed._loop = self

        class Current(Silent):
            """The stream that is current when it is asked for."""

            def __init__(self) -> None:
                self.which = rehearsed.stream

        @contextmanager
        def stream(chosen: object) -> Iterator[None]:
            before = rehearsed.stream
            rehearsed.stream = chosen.which if isinstance(chosen, Current) else chosen
            try:
                yield
            finally:
                rehearsed.stream = before

        @contextmanager
        def graph(graph: Graph, stream: object) -> Iterator[None]:
            before_it, rehearsed.stream = rehearsed.stream, stream
            yield from recorded(graph)
            rehearsed.stream = before_it  # not where the end of the recording fails: torch does no better

        def recorded(graph: Graph) -> Iterator[None]:
            loop = rehearsed._loop
            assert loop is not None
            before = deepcopy([[weight.data, loop.optimiser.state[weight]] for weight in loop.params])
            self.recording = True
            try:
                yield
            finally:
                self.recording = False
                for weight, (data, state) in zip(loop.params, before, strict=True):
                    weight.data.copy_(data)
                    for name, value in state.items():
                        loop.optimiser.state[weight][name].copy_(value)
            self.recorded += 1
            captured: Any = loop.captured

            def replay() -> None:
                for name, loss in loop._iterate(captured._indices, captured._iteration).items():
                    captured._losses[name].copy_(loss)

            graph.replay = replay

        def on_the_cpu(*size: Any, **more: Any) -> torch.Tensor:
            return zeros(*size, **{**more, "device": "cpu"})

        patch.setattr(torch, "zeros", on_the_cpu)
        for name, stand_in in (
            ("CUDAGraph", Graph), ("graph", graph), ("Stream", Silent), ("Event", Silent), ("current_stream", Current),
            ("stream", stream),
        ):  # fmt: skip
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(portions, "capturing", lambda: self.recording)
        patch.setattr(Loop, "__init__", loop)


CPU = Execution(threads=1)
REHEARSED = Execution.model_construct(**{**CPU.model_dump(), "captured": True})
"""What no user can ask for."""


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> Rehearsed:
    return Rehearsed(monkeypatch)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("kind", sorted(DEFENSES))
def test_a_rehearsed_capture_trains_as_without(rehearsed: Rehearsed, kind: str, optimiser: str) -> None:
    schedule: dict[str, object] = {"optimiser": optimiser}
    assert_equal(run(kind, REHEARSED, schedule=schedule), run(kind, CPU, schedule=schedule))
    assert rehearsed.recorded == 1


@pytest.mark.usefixtures("rehearsed")
@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 8, 13])
def test_a_rehearsed_capture_resumes_to_the_same_bits(stop_at: int) -> None:
    monitor = Recording(stop_at=stop_at)
    with pytest.raises(Interrupted):
        run("e2sad", REHEARSED, monitor=monitor)
    (checkpoint,) = monitor.checkpoints
    assert_equal(run("e2sad", REHEARSED, resume=checkpoint), run("e2sad", CPU))


def test_where_the_recording_runs_out_of_memory_smaller_parts_warm_up_again(rehearsed: Rehearsed) -> None:
    seen: list[tuple[int, bool]] = []

    def see(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, torch.nn.Sequential):
            seen.append((len(arguments[0]), rehearsed.recording))
            if rehearsed.recording and len(arguments[0]) > 4:
                raise torch.OutOfMemoryError("full")

    hook, said = register_module_forward_pre_hook(see), list[str]()
    try:
        found = run("e2sad", REHEARSED, tell=said.append)
    finally:
        hook.remove()
    assert (found.micro_batch, said) == (4, ["out of memory with 8 examples at once, going on with 4: full"])
    first = seen.index((4, True))
    assert (4, False) in seen[:first], "no shape is met for the first time in a recording"
    assert rehearsed.recorded == 1


def test_after_a_recording_that_fails_the_stream_is_the_one_before(rehearsed: Rehearsed) -> None:
    def fail(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if rehearsed.recording:
            raise RuntimeError("operation not permitted when stream is capturing")

    hook = register_module_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="not permitted"):
            run("e2sad", REHEARSED)
    finally:
        hook.remove()
    assert rehearsed.stream == "default"


@pytest.mark.gpu
@needs_cuda
def test_after_a_recording_that_fails_the_process_trains_or_says_that_it_cannot() -> None:
    def wait(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if torch.cuda.is_current_stream_capturing():
            arguments[0].sum().item()

    hook = register_module_forward_pre_hook(wait)
    try:
        with pytest.raises(RuntimeError):
            run("natural", CAPTURED)
    finally:
        hook.remove()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    if computes():
        assert_equal(run("natural", CAPTURED), run("natural", EAGER))


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
