"""Out of memory: smaller parts of a batch, the same gradients; and one sentence where nothing helps."""

import gc
import json
import subprocess
import sys
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from core import portions
from core.attacks.pgd import PGD
from core.defenses import DEFENSES
from core.defenses.hamm_minimax import HammMinimax
from core.errors import OutOfMemory, SpecError
from core.evaluation import craft, predict
from core.execution import Execution
from core.portions import Portion
from core.training import Training, load_model, train
from tests.core.small import Recording, TinyNet, small, tiny_model, tiny_pixels

EXACT = Execution(threads=1, precision="float64", layout="contiguous")
FAST = Execution(threads=1)
ONE_STEP = Training(iterations=1, batch_size=8, optimiser="sgd", lr=1, momentum=0)
"""The weights move by the gradient itself."""
COUPLED = [HammMinimax(reduction="batch-sum"), HammMinimax(reduction="example-sum"), HammMinimax(power=1)]


@contextmanager
def without_collections():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def memory_for(most: int):
    """A device that runs out of memory where a network is given more than `most` examples at once."""
    seen = []

    def full(_, arguments):
        seen.append(len(arguments[0]))
        if len(arguments[0]) > most:
            raise torch.OutOfMemoryError(f"Tried to allocate {len(arguments[0])} GiB.")

    hook = register_module_forward_pre_hook(full)
    try:
        yield seen
    finally:
        hook.remove()


@pytest.fixture(params=sorted(DEFENSES))
def defense(request):
    return small(DEFENSES[request.param])


def run(defense, training=ONE_STEP, execution=EXACT, **others):
    images, labels = tiny_pixels(20)
    return train(
        defense, TinyNet(), training, execution, mathematics="recipe", seed=0, images=images, labels=labels, **others
    )  # fmt: skip


def furthest(first, second) -> float:
    return max((weight - second.weights[name]).abs().max().item() for name, weight in first.weights.items())


class TestTraining:
    @pytest.mark.parametrize("micro_batch", [1, 3, 4, 7])
    def test_the_gradients_are_those_of_the_whole_batch(self, defense, micro_batch):
        whole, parts = run(defense), run(defense, micro_batch=micro_batch)
        assert furthest(whole, parts) < 1e-9
        assert parts.curve[0] == pytest.approx(whole.curve[0], abs=1e-9)
        assert (whole.micro_batch, parts.micro_batch) == (None, micro_batch)

    def test_in_float32_too(self, defense):
        assert furthest(run(defense, execution=FAST), run(defense, execution=FAST, micro_batch=3)) < 1e-6

    def test_so_are_the_weights_after_twenty_iterations(self, defense):
        schedule = Training(iterations=20, batch_size=8)
        assert furthest(run(defense, schedule), run(defense, schedule, micro_batch=3)) < 1e-9

    def test_no_part_is_larger(self, defense):
        with memory_for(100) as seen:
            run(defense, micro_batch=3)
        assert max(seen) == 3

    def test_when_memory_runs_out_the_same_iteration_goes_on_in_parts(self, defense):
        said = []
        with memory_for(3) as seen:
            found = run(defense, Training(iterations=5, batch_size=8), tell=said.append)
        assert found.micro_batch == 2
        assert [line.partition(":")[0] for line in said] == [
            "out of memory with 8 examples at once, going on with 4",
            "out of memory with 4 examples at once, going on with 2",
        ]
        assert "Tried to allocate 8 GiB" in said[0]
        assert furthest(found, run(defense, Training(iterations=5, batch_size=8), micro_batch=2)) == 0
        assert seen.count(8) == 2, "what did not fit is tried once more when all that is dead is gone"

    def test_what_is_dead_makes_room_before_parts_get_smaller(self):
        """Tensors in a reference cycle hold memory until somebody collects them."""
        alive = weakref.WeakSet()

        class Dead:
            def __init__(self):
                self.me = self
                alive.add(self)

        def full(_, arguments):
            if alive:
                raise torch.OutOfMemoryError("the dead hold it")

        with without_collections():
            Dead()
            hook = register_module_forward_pre_hook(full)
            try:
                found = run(DEFENSES["natural"]())
            finally:
                hook.remove()
        assert found.micro_batch is None

    def test_looking_at_the_next_batch_does_not_change_the_training(self):
        """Memory that runs out only there, without gradients, says nothing about the iterations."""

        def full(*_):
            if not torch.is_grad_enabled():
                raise torch.OutOfMemoryError("no room to look")

        said = []
        hook = register_module_forward_pre_hook(full)
        try:
            with pytest.raises(OutOfMemory):
                run(DEFENSES["natural"](), tell=said.append)
        finally:
            hook.remove()
        assert said == []

    @pytest.mark.parametrize("defense", COUPLED, ids=lambda defense: defense.label())
    def test_a_penalty_over_the_whole_batch_is_not_split(self, defense):
        with memory_for(3), pytest.raises(OutOfMemory, match="the 8 examples that have to go together: Tried to"):
            run(defense)
        with pytest.raises(SpecError, match=r"micro_batch: hamm_minimax .* leave it out"):
            run(defense, micro_batch=3)

    def test_inside_a_recording_nothing_is_done_again(self, monkeypatch):
        """Whoever records begins anew, outside of it, with what is then allowed."""
        monkeypatch.setattr(portions, "capturing", lambda: inside)
        portion, sizes, inside = Portion(8), [], False

        def needs(most):
            sizes.append(portion.size)
            if portion.size > most:
                raise torch.OutOfMemoryError("full")
            return portion.size

        def recorded(_):
            nonlocal inside
            inside = True
            try:
                return portion.fit(lambda _: needs(4), 8)
            finally:
                inside = False

        assert portion.fit(recorded, 8) == 4
        assert sizes == [8, 8, 4]

    def test_what_has_to_go_together_stays_together_after_an_earlier_attempt_too(self):
        together, others = Portion(8, least=8), Portion(8)
        for portion in (together, others):
            portion.lower_to(2)
        assert (together.size, others.size) == (8, 2)

    def test_a_resumed_run_begins_with_what_fitted(self):
        schedule, monitor = Training(iterations=6, batch_size=8), Recording(checkpoint_at=3)
        with memory_for(3):
            whole = run(DEFENSES["e2sad"](), schedule, monitor=monitor)
        resumed = run(DEFENSES["e2sad"](), schedule, resume=monitor.checkpoints[0])
        assert resumed.micro_batch == 2
        assert furthest(whole, resumed) == 0

    def test_where_one_example_is_too_much_it_says_how_much_was_needed(self):
        with memory_for(0), pytest.raises(OutOfMemory, match=r"one example at a time: Tried to allocate 1 GiB"):
            run(DEFENSES["natural"]())


class TestWhatTellsOfMemory:
    @pytest.mark.parametrize(
        "said",
        [
            "CUDA error: out of memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "GET was unable to find an engine to execute this computation",
        ],
    )
    def test_not_only_torchs_own_allocator(self, said):
        def needs(size):
            if size > 4:
                raise torch.AcceleratorError(said)
            return size

        assert Portion(8).fit(needs, 8) == 4

    def test_what_follows_it(self):
        """The end of a recording that memory has cut short fails with an error of its own."""

        def recorded(size):
            try:
                if size > 4:
                    raise torch.OutOfMemoryError("full")
            finally:
                if size > 4:
                    raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
            return size

        assert Portion(8).fit(recorded, 8) == 4

    @pytest.mark.parametrize(
        "error", [torch.AcceleratorError("CUDA error: misaligned address"), RuntimeError("shapes")]
    )
    def test_another_error_is_raised_at_once(self, error):
        sizes = []

        def broken(size):
            sizes.append(size)
            raise error

        with pytest.raises(type(error), match=str(error)):
            Portion(8).fit(broken, 8)
        assert sizes == [8]

    def test_a_process_with_little_memory(self):
        command = [sys.executable, "-m", "tests.core.tight", "50"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert found["said"][0].startswith("out of memory with 64 examples at once, going on with 32: ")
        assert "DefaultCPUAllocator" in found["said"][0]
        assert found["apart"] == 0


class TestEvaluation:
    @pytest.fixture
    def model(self):
        return load_model(TinyNet(), tiny_model().state_dict(), EXACT)

    def test_examples_and_predictions_are_those_of_the_whole_set(self, model):
        pixels, labels = tiny_pixels(23)
        attack = PGD(eps="0.1", steps=3)
        whole = (
            craft(attack, model, pixels, labels, EXACT, portion=Portion(10)),
            predict(model, pixels, EXACT, portion=Portion(10)),
        )
        crafting, looking = Portion(10), Portion(10)
        with memory_for(4):
            crafted = craft(attack, model, pixels, labels, EXACT, portion=crafting)
            predicted = predict(model, pixels, EXACT, portion=looking)
        assert torch.allclose(crafted, whole[0], rtol=0, atol=1e-7)
        assert torch.equal(predicted, whole[1])
        assert (crafting.lowered, looking.lowered) == (3, 3)

    def test_what_fits_is_not_lowered(self, model):
        portion = Portion(10)
        predict(model, tiny_pixels(23)[0], EXACT, portion=portion)
        assert portion.lowered is None

    def test_where_one_image_is_too_much(self, model):
        pixels, labels = tiny_pixels(5)
        with memory_for(0):
            with pytest.raises(OutOfMemory):
                craft(PGD(), model, pixels, labels, EXACT)
            with pytest.raises(OutOfMemory):
                predict(model, pixels, EXACT)
