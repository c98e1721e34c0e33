"""Training: equal to a plain loop, repeatable and resumable to the last bit, and honest about divergence."""

import gc
import json
import struct
import weakref

import pytest
import torch
from pydantic import ValidationError

from core.canonical import derive_seed
from core.defenses import DEFENSES
from core.defenses.e2sad import E2SAD
from core.defenses.fgsm_adv import FgsmTraining
from core.defenses.ifgsm_adv import IfgsmTraining
from core.defenses.natural import Natural
from core.errors import ArtifactCorrupt, Diverged, Interrupted
from core.execution import Execution
from core.networks.mnist_cnn import MnistCnn
from core.random import uniform
from core.training import Loop, Order, Trained, Training, load_model, train, weights_from_bytes, weights_to_bytes
from tests.core import naive
from tests.core.counting import CountPasses
from tests.core.small import Recording, TinyNet, small, tiny_images, tiny_model, tiny_pixels

EXACT = Execution(threads=1, precision="float64", layout="contiguous")
FAST = Execution(threads=1)
SHORT = Training(iterations=12, batch_size=8)


@pytest.fixture(params=sorted(DEFENSES))
def defense(request):
    return small(DEFENSES[request.param])


def run(defense=None, training=SHORT, execution=FAST, seed=0, mathematics="recipe", **others) -> Trained:
    images, labels = tiny_pixels(20)
    return train(
        defense or Natural(), TinyNet(), training, execution,
        mathematics=mathematics, seed=seed, images=images, labels=labels, **others,
    )  # fmt: skip


def equal(first: Trained, second: Trained) -> bool:
    same = all(torch.equal(weight, second.weights[name]) for name, weight in first.weights.items())
    return same and first.weights.keys() == second.weights.keys() and first.curve == second.curve


ADAM = Training(iterations=20, batch_size=8)
SGD = Training(iterations=20, batch_size=8, optimiser="sgd", lr=0.05, weight_decay=0.01)


def plain_optimiser(training, parameters):
    if training.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=training.lr, weight_decay=training.weight_decay)
    return torch.optim.SGD(parameters, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay)


@pytest.mark.parametrize("training", [ADAM, SGD], ids=["adam", "sgd"])
def test_twenty_iterations_equal_a_plain_loop(defense, training):
    if defense.kind not in naive.LOSSES:
        pytest.skip("test_defenses.py fails for want of its naive form, and says so")
    pixels, labels = tiny_pixels(20)
    images = pixels.double() / 255
    targets = naive.soft(labels, 4, defense.label_smoothing, torch.float64)
    model = TinyNet().build(derive_seed("recipe", 0, "init")).double()
    optimiser = plain_optimiser(training, model.parameters())
    order, noise_seed = Order("recipe", 0, 20, 8, "cpu"), derive_seed("recipe", 0, "noise")
    for iteration in range(20):
        chosen = order(iteration)
        loss = naive.LOSSES[defense.kind](
            model, defense, images[chosen], targets[chosen], chosen, noise_seed, iteration
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = run(defense, training, EXACT)
    assert found.curve[-1]["loss"] == pytest.approx(loss.item(), abs=1e-9)
    for name, weight in model.state_dict().items():
        assert (found.weights[name] - weight).abs().max() < 1e-9


def test_equal_arguments_give_equal_bits_and_other_seeds_other_weights(defense):
    first = run(defense)
    assert equal(first, run(defense))
    for other in (run(defense, seed=1), run(defense, mathematics="other")):
        assert all(not torch.equal(weight, other.weights[name]) for name, weight in first.weights.items())


@pytest.mark.parametrize("execution", [FAST, EXACT, Execution(threads=1, layout="contiguous")], ids=str)
@pytest.mark.parametrize("training", [SHORT, SGD], ids=["adam", "sgd"])
def test_a_drained_run_resumes_to_the_same_bits(defense, training, execution):
    whole = run(defense, training, execution)
    monitor = Recording(stop_at=8)
    with pytest.raises(Interrupted):
        run(defense, training, execution, monitor=monitor)
    (checkpoint,) = monitor.checkpoints
    assert equal(run(defense, training, execution, resume=checkpoint), whole)


def test_a_run_resumes_from_a_periodic_checkpoint_any_number_of_times():
    whole, checkpoint = run(E2SAD()), None
    for _ in range(3):
        monitor = Recording(checkpoint_at=3, stop_at=9, reason="lost")
        with pytest.raises(Interrupted):
            run(E2SAD(), resume=checkpoint, monitor=monitor)
        (checkpoint,) = monitor.checkpoints
    assert equal(run(E2SAD(), resume=checkpoint), whole)


@pytest.mark.parametrize(("reason", "saved"), [("drain", 1), ("cancelled", 0), ("lost", 0)])
def test_only_a_drain_saves_a_checkpoint_on_the_way_out(reason, saved):
    monitor = Recording(stop_at=3, reason=reason)
    with pytest.raises(Interrupted) as stopped:
        run(monitor=monitor)
    assert stopped.value.reason == reason
    assert len(monitor.checkpoints) == saved


def test_a_drain_in_the_middle_of_an_attack_loses_that_iteration_only():
    monitor = Recording(stop_at=30)
    with pytest.raises(Interrupted):
        run(IfgsmTraining(steps=20), monitor=monitor)
    (checkpoint,) = monitor.checkpoints
    assert equal(run(IfgsmTraining(steps=20), resume=checkpoint), run(IfgsmTraining(steps=20)))


class TestBrokenCheckpoints:
    @pytest.fixture
    def checkpoint(self) -> bytes:
        monitor = Recording(checkpoint_at=6)
        run(monitor=monitor)
        return monitor.checkpoints[0]

    def test_it_holds_no_pickle(self, checkpoint):
        (length,) = struct.unpack("<Q", checkpoint[:8])
        header = json.loads(checkpoint[8 : 8 + length])
        assert json.loads(header["__metadata__"]["state"])["iteration"] == 6

    @pytest.mark.parametrize("length", [0, 5, 100, -1])
    def test_a_torn_one_is_corrupt(self, checkpoint, length):
        with pytest.raises(ArtifactCorrupt):
            run(resume=checkpoint[:length])

    def test_one_without_our_header_is_corrupt(self):
        with pytest.raises(ArtifactCorrupt, match="header"):
            run(resume=weights_to_bytes(tiny_model().state_dict()))

    @pytest.mark.parametrize("others", [{"seed": 1}, {"mathematics": "other"}, {"execution": EXACT}])
    def test_one_of_another_training_is_corrupt(self, checkpoint, others):
        with pytest.raises(ArtifactCorrupt, match="another training"):
            run(resume=checkpoint, **others)

    def test_one_of_another_network_is_corrupt(self, checkpoint):
        with pytest.raises(ArtifactCorrupt, match="does not fit"):
            train(
                Natural(), MnistCnn(), SHORT, FAST, mathematics="recipe", seed=0,
                images=torch.zeros(8, 1, 28, 28, dtype=torch.uint8), labels=torch.zeros(8, dtype=torch.int64),
                resume=checkpoint,
            )  # fmt: skip


@pytest.mark.parametrize("kind", ["natural", "e2sad"])
def test_a_diverging_training_says_so(kind):
    wild = Training(iterations=300, batch_size=8, optimiser="sgd", lr=10, weight_decay=1)
    with pytest.raises(Diverged, match=r"diverged: the loss loss is (nan|inf) at iteration \d+ of 300"):
        run(DEFENSES[kind](), wild)


def test_weights_that_are_not_finite_after_the_last_step_are_noticed():
    """The last losses were computed before the last update."""
    wild = Training(iterations=1, batch_size=8, optimiser="sgd", lr=10)
    with pytest.raises(Diverged, match="weight"):
        run(_Exploding(), wild)


class _Exploding(Natural):
    def gradients(self, batch):
        found = super().gradients(batch)
        return found._replace(weights=[weight * float("inf") for weight in found.weights])


class TestCurve:
    def test_it_has_about_200_points_and_the_last_iteration(self):
        monitor = Recording()
        trained = run(training=Training(iterations=6001, batch_size=1), monitor=monitor)
        iterations = [point["iteration"] for point in trained.curve]
        assert iterations == [1, *range(30, 6001, 30), 6001]
        assert [done for done, _, _ in monitor.reports] == [*range(1, 6002)]
        assert [done for done, _, figures in monitor.reports if figures] == iterations
        assert monitor.reports[-1] == (6001, 6001, {"loss": trained.curve[-1]["loss"]})

    def test_a_short_training_is_not_slowed_down_by_it(self):
        """Each point costs a forward pass and, on CUDA, a wait; the first loss and the last are always known."""
        iterations = [point["iteration"] for point in run(training=Training(iterations=60, batch_size=1)).curve]
        assert iterations == [1, 25, 50, 60]
        assert [point["iteration"] for point in run(training=Training(iterations=1, batch_size=1)).curve] == [1]

    def test_it_holds_every_loss_of_the_defense(self):
        assert set(run(E2SAD()).curve[0]) == {
            "iteration", "loss", "clean", "adversarial", "dissimilarity", "accuracy"}  # fmt: skip

    def test_training_learns(self):
        curve = run(FgsmTraining(eps="0.02"), Training(iterations=400, batch_size=20)).curve
        assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]


def test_a_finished_training_is_gone_without_a_garbage_collection():
    """On CUDA it holds a graph, whose end must not fall into the recording of the next one."""
    models = []

    class Looking(Natural):
        def gradients(self, batch):
            models.append(weakref.ref(batch.model))
            return super().gradients(batch)

    run()  # what torch imports at its first optimiser leaves cycles of its own
    gc.collect()
    gc.disable()
    try:
        run(Looking())
        assert len(models) == SHORT.iterations
        assert models[0]() is None
    finally:
        gc.enable()


def test_an_iteration_is_its_passes_and_no_look_at_the_accuracy(defense):
    """It is what the bench measures and what the profile shows."""
    images, labels = tiny_pixels(20)
    loop = Loop(
        defense=defense, network=TinyNet(), training=SHORT, execution=FAST, mathematics="recipe", seed=0, images=images,
        labels=labels,
    )  # fmt: skip
    with CountPasses(SHORT.batch_size) as counted:
        for _ in range(SHORT.iterations):
            loop.advance()
    assert counted.passes.forward == SHORT.iterations * defense.passes().forward


class TestOrder:
    def test_every_epoch_shows_every_image_once(self):
        order = Order("r", 0, 20, 8, "cpu")
        shown = torch.cat([order(iteration) for iteration in range(5)])
        for epoch in shown.split(20):
            assert sorted(epoch.tolist()) == list(range(20))
        assert shown[:20].tolist() != shown[20:].tolist()

    def test_it_is_a_function_of_recipe_seed_and_iteration(self):
        straight = [Order("r", 0, 20, 8, "cpu")(iteration).tolist() for iteration in (7, 2, 7)]
        assert straight[0] == straight[2]
        walked = Order("r", 0, 20, 8, "cpu")
        assert [walked(iteration).tolist() for iteration in range(8)][2] == straight[1]
        assert Order("r", 1, 20, 8, "cpu")(7).tolist() != straight[0]
        assert Order("q", 0, 20, 8, "cpu")(7).tolist() != straight[0]

    def test_a_batch_may_be_larger_than_the_set(self):
        assert len(Order("r", 0, 3, 8, "cpu")(1)) == 8
        images, labels = tiny_pixels(3)
        trained = train(Natural(), TinyNet(), SHORT, FAST, mathematics="r", seed=0, images=images, labels=labels)
        assert trained.curve


class TestWeights:
    def test_bytes_are_the_same_whatever_the_layout(self):
        model = tiny_model(dtype=torch.float32)
        data = weights_to_bytes(model.state_dict())
        assert data == weights_to_bytes(model.to(memory_format=torch.channels_last).state_dict())
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights_from_bytes(data).items())

    def test_what_is_no_safetensors_file_is_corrupt(self):
        for data in (b"", b"x" * 100, weights_to_bytes(tiny_model().state_dict())[:-1]):
            with pytest.raises(ArtifactCorrupt):
                weights_from_bytes(data)

    def test_a_loaded_model_is_ready_for_evaluation(self):
        trained = run()
        assert all(weight.is_contiguous() and not weight.requires_grad for weight in trained.weights.values())
        model = load_model(TinyNet(), trained.weights, FAST)
        assert not any(module.training for module in model.modules())
        assert not any(weight.requires_grad for weight in model.parameters())
        assert all(torch.equal(value, trained.weights[name]) for name, value in model.state_dict().items())

    def test_weights_of_another_network_are_refused(self):
        with pytest.raises(ArtifactCorrupt, match="mnist_cnn"):
            load_model(MnistCnn(), tiny_model().state_dict(), FAST)


def test_the_process_is_left_as_it_was():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    run(execution=Execution(threads=threads + 1))
    assert torch.get_num_threads() == threads
    assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_seen_as_pixels_over_255():
    seen = []

    class Looking(Natural):
        def gradients(self, batch):
            seen.append((batch.images, batch.indices, batch.labels, batch.targets))
            return super().gradients(batch)

    run(Looking(label_smoothing=0.25), Training(iterations=1, batch_size=8), EXACT)
    pixels, labels = tiny_pixels(20)
    images, indices, truth, targets = seen[0]
    assert torch.equal(images, pixels[indices].double() / 255)
    assert torch.equal(truth, labels[indices])
    assert torch.equal(targets.argmax(1), truth)
    assert targets.max().item() == 0.75


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"iterations": 0},
        {"iterations": 10, "batch_size": 0},
        {"iterations": 10, "batch_size": 65537},
        {"iterations": 10, "lr": 0},
        {"iterations": 10, "lr": float("nan")},
        {"iterations": 10, "lr": 11},
        {"iterations": 10, "optimiser": "lion"},
        {"iterations": 10, "momentum": 0.5},
        {"iterations": 10, "optimiser": "sgd", "momentum": 1},
        {"iterations": 10, "epochs": 1},
    ],
)
def test_bad_schedules_are_refused(fields):
    with pytest.raises(ValidationError):
        Training(**fields)


def test_tiny_images_are_not_constant():
    images, labels = tiny_images(20)
    assert images.std() > 0.1
    assert set(labels.tolist()) == {0, 1, 2, 3}


def test_the_papers_network_is_repeatable_on_several_threads():
    pixels = (uniform(0, 0, torch.arange(32), (1, 28, 28), torch.float64) * 255).to(torch.uint8)
    labels = torch.arange(32) % 10
    schedule, plan = Training(iterations=3, batch_size=16), Execution(threads=2)

    def once(**others) -> Trained:
        return train(
            E2SAD(), MnistCnn(), schedule, plan, mathematics="r", seed=0, images=pixels, labels=labels, **others
        )  # fmt: skip

    whole, monitor = once(), Recording(checkpoint_at=2)
    assert equal(once(monitor=monitor), whole)
    assert equal(once(resume=monitor.checkpoints[0]), whole)


class Ticking(Recording):
    """A clock that goes one second at each question of whether to stop."""

    def __init__(self, begins: float, **more: int):
        super().__init__(**more)
        self.begins = begins

    def clock(self) -> float:
        return self.begins + self.checks


def test_seconds_are_summed_over_attempts_without_the_outage_and_without_what_was_lost():
    monitor = Ticking(1000.0, checkpoint_at=5, stop_at=9, reason="lost")
    with pytest.raises(Interrupted):
        run(monitor=monitor)
    resumed = run(monitor=Ticking(5000.0), resume=monitor.checkpoints[0])
    assert resumed.seconds == run(monitor=Ticking(0.0)).seconds == 12.0


def test_the_curve_tells_the_accuracy_on_images_about_to_be_trained_on():
    images, labels = tiny_pixels(20)
    found = run(training=Training(iterations=3, batch_size=8))
    chosen = Order("recipe", 0, 20, 8, "cpu")(3)
    model = load_model(TinyNet(), found.weights, FAST)
    right = model(images[chosen].float() / 255).argmax(1) == labels[chosen]
    assert found.curve[-1]["accuracy"] == right.double().mean().item()


def test_to_look_at_the_accuracy_leaves_running_statistics_alone():
    class Normalised(TinyNet):
        def layers(self):
            class Norm:
                def output(self, shape):
                    return shape

                def flop(self, shape):
                    return 0

                def modules(self, shape):
                    return [torch.nn.BatchNorm2d(shape[0])]

            first, *others = super().layers()
            return (first, Norm(), *others)

    images, labels = tiny_pixels(20)
    loop = Loop(
        defense=Natural(), network=Normalised(), training=SHORT, execution=FAST, mathematics="recipe", seed=0,
        images=images, labels=labels,
    )  # fmt: skip
    loop.advance()
    before = {name: value.clone() for name, value in loop.model.named_buffers()}
    assert before["3.running_mean"].any()
    loop._accuracy()
    assert all(torch.equal(value, before[name]) for name, value in loop.model.named_buffers())
    assert loop.model.training
