"""Evaluation: whole sets in batches, the same examples whatever the batch, one bit per example."""

import pytest
import torch
from safetensors.torch import load

from core.attacks.fgsm import FGSM
from core.attacks.ifgsm import IFGSM
from core.attacks.none import NoAttack
from core.attacks.pgd import PGD
from core.bits import Bits
from core.errors import Interrupted
from core.evaluation import correct_bits, craft, predict
from core.execution import Execution
from core.portions import Portion
from core.stages.craft import EXAMPLES, Craft
from core.stages.train import loaded
from core.training import load_model
from tests.core.small import Recording, TinyNet, tiny_model, tiny_pixels
from tests.worker.calm import calm

PLAN = Execution(threads=1)
EXACT = Execution(threads=1, precision="float64")


@pytest.fixture
def weights():
    return tiny_model(dtype=torch.float32).state_dict()


@pytest.fixture
def model(weights):
    return load_model(TinyNet(), weights, PLAN)


def test_crafted_examples_are_those_of_one_call(model):
    pixels, labels = tiny_pixels(23)
    attack = PGD(eps="0.1", steps=3)
    crafted = craft(attack, model, pixels, labels, PLAN, portion=Portion(23))
    images = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
    assert torch.equal(crafted, attack(model, images, labels))
    assert crafted.dtype == torch.float32
    assert crafted.is_contiguous()


def test_the_batch_size_changes_nothing(weights):
    """In float64: float32 sums may differ in their last bit with the batch, and a sign step amplifies that."""
    model = load_model(TinyNet(), weights, EXACT)
    pixels, labels = tiny_pixels(23)
    attack = PGD(eps="0.1", steps=3, restarts=2)
    whole = craft(attack, model, pixels, labels, EXACT, portion=Portion(100))
    assert torch.allclose(craft(attack, model, pixels, labels, EXACT, portion=Portion(5)), whole, rtol=0, atol=1e-7)
    first = craft(attack, model, pixels[:7], labels[:7], EXACT, portion=Portion(4))
    assert torch.allclose(first, whole[:7], rtol=0, atol=1e-7)


def test_whole_numbers_and_floats_are_the_same_images(model):
    pixels, labels = tiny_pixels(9)
    clean = craft(NoAttack(), model, pixels, labels, PLAN, portion=Portion(4))
    assert torch.equal(clean, pixels.float() / 255)
    from_floats = craft(FGSM(), model, clean, labels, PLAN, portion=Portion(4))
    assert torch.equal(from_floats, craft(FGSM(), model, pixels, labels, PLAN, portion=Portion(4)))
    assert torch.equal(predict(model, pixels, PLAN), predict(model, clean, PLAN))
    assert torch.equal(clean, pixels.float() / 255)


def test_the_training_targets_reach_the_attack(model):
    pixels, labels = tiny_pixels(9)
    attack = FGSM(eps="0.1", loss="training")
    hard, soft = (craft(attack, model, pixels, labels, PLAN, smoothing=smoothing) for smoothing in (0.0, 0.74))
    assert torch.equal(hard, craft(FGSM(eps="0.1"), model, pixels, labels, PLAN, smoothing=0.74))
    assert not torch.equal(hard, soft)


def test_the_craft_stage_climbs_the_targets_of_its_substitutes_training():
    soft, attack = {"kind": "natural", "label_smoothing": 0.25}, {"kind": "fgsm", "loss": "training"}
    run = calm({"dataset": "mnist-mini", "training": {"iterations": 20, "batch_size": 8}, "defense": soft,
                "attacks": [attack], "substitutes": [], "limit": 20})  # fmt: skip
    key, stage = next((key, stage.spec) for key, stage in run.plan.stages.items() if isinstance(stage.spec, Craft))
    crafted = load(run.outcomes[key].artifacts[EXAMPLES][1])[EXAMPLES]
    _, model, images, labels = loaded(run, stage.substitute, stage.execution, stage.limit)
    by_hand = [craft(stage.attack, model, images, labels, stage.execution, smoothing=some) for some in (0.25, 0.0)]
    assert [torch.equal(crafted, examples) for examples in by_hand] == [True, False]


def test_predictions_are_the_largest_logits(model):
    pixels, _ = tiny_pixels(23)
    predictions = predict(model, pixels, PLAN, portion=Portion(10))
    assert predictions.dtype == torch.int64
    assert predictions.tolist() == [model(pixel[None].float() / 255).argmax().item() for pixel in pixels]


def test_progress_and_the_order_to_stop(model):
    pixels, labels = tiny_pixels(10)
    monitor = Recording()
    craft(FGSM(), model, pixels, labels, PLAN, portion=Portion(4), monitor=monitor)
    assert [report[:2] for report in monitor.reports] == [(4, 10), (8, 10), (10, 10)]
    with pytest.raises(Interrupted):
        craft(IFGSM(steps=100), model, pixels, labels, PLAN, monitor=Recording(stop_at=5, reason="cancelled"))


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
def test_bits_there_and_back(n):
    generator = torch.Generator().manual_seed(n)
    predictions, labels = (torch.randint(0, 3, (n,), generator=generator) for _ in range(2))
    data = correct_bits(predictions, labels)
    assert len(data) == (n + 7) // 8
    right = (predictions == labels).tolist()
    assert Bits.unpacked(data, n) == Bits(n, sum(2 ** (n - 1 - i) for i, one in enumerate(right) if one))


def test_the_first_example_is_the_highest_bit():
    assert correct_bits(torch.tensor([1, 0, 0]), torch.tensor([1, 1, 1])) == b"\x80"


def test_threads_are_put_back(model):
    threads = torch.get_num_threads()
    predict(model, tiny_pixels(3)[0], Execution(threads=threads + 1))
    assert torch.get_num_threads() == threads
