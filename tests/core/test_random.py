import pytest
import torch

from core import random
from core.random import fold, normal, uniform

MANY = torch.arange(400)
SHAPE = (25, 20)


def test_the_mix_is_splitmix64():
    """The first outputs for seed 1234567, as published with the reference implementation."""
    states = 1234567 + torch.arange(1, 6) * random._GOLDEN
    signed = random._mix(states).tolist()
    assert [value % 2**64 for value in signed] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_uniform_is_uniform():
    draws = uniform(3, 1, MANY, SHAPE, torch.float64)
    assert draws.shape == (400, 25, 20)
    assert 0 <= draws.min() <= draws.max() < 1
    counts = torch.histc(draws, bins=100, min=0, max=1)
    expected = draws.numel() / 100
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom


def test_normal_is_normal():
    draws = normal(3, 1, MANY, SHAPE, torch.float64)
    n = draws.numel()
    assert abs(draws.mean()) < 4 / n**0.5
    assert abs(draws.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((draws**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((draws**4).mean() - 3) < 4 * (96 / n) ** 0.5


@pytest.mark.parametrize("draw", [uniform, normal])
def test_examples_elements_streams_and_seeds_are_independent(draw):
    def columns(seed: int = 0, stream: int = 0) -> torch.Tensor:
        return draw(seed, stream, MANY, SHAPE, torch.float64).flatten(1)

    base = columns()
    pairs = [
        (base[1:], base[:-1]),
        (base[:, 1:], base[:, :-1]),
        (base[:, :250], base[:, 250:]),
        (base, columns(stream=1)),
        (base, columns(seed=1)),
        (columns(seed=1), columns(stream=1)),
    ]
    for first, second in pairs:
        both = torch.stack([first.flatten(), second.flatten()])
        assert abs(torch.corrcoef(both)[0, 1]) < 5 / first.numel() ** 0.5


@pytest.mark.parametrize("draw", [uniform, normal])
@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
def test_an_example_does_not_know_its_batch(draw, shape):
    indices = torch.tensor([5, 0, 9, 5])
    together = draw(1, 2, indices, shape, torch.float32)
    alone = [draw(1, 2, index.unsqueeze(0), shape, torch.float32)[0] for index in indices]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(together[0], together[3])


def test_precision_does_not_change_the_numbers():
    single = uniform(1, 2, MANY, SHAPE, torch.float32)
    double = uniform(1, 2, MANY, SHAPE, torch.float64)
    assert torch.equal(single.double(), double)


def test_a_stream_may_be_a_tensor():
    """So that an iteration captured once can be replayed with another number."""
    by_number = uniform(1, 7, MANY, (4,), torch.float32)
    assert torch.equal(uniform(1, torch.tensor(7), MANY, (4,), torch.float32), by_number)


def test_fold_knows_the_order_and_the_number_of_its_arguments():
    keys = [fold(0), fold(0, 0), fold(0, 0, 0), fold(0, 1), fold(1, 0), fold(1), fold(2**62, -1)]
    assert len({int(key) for key in keys}) == len(keys)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    normal(0, 0, MANY, SHAPE, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
