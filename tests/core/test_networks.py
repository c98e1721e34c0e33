import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from core.layers import Conv, initialise
from core.networks import NETWORKS
from core.networks.mnist_cnn import MnistCnn
from core.networks.svhn_cnn import SvhnCnn
from core.scaling import PixelRange, Standardise


@pytest.fixture(params=sorted(NETWORKS))
def network(request):
    return NETWORKS[request.param]()


def test_equal_seeds_give_equal_weights_and_the_global_generator_is_left_alone(network):
    before = torch.get_rng_state()
    first, again, other = network.build(5), network.build(5), network.build(6)
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert not torch.equal(weight, other.state_dict()[name])


def test_logits_come_out_of_images_in_evaluation_mode(network):
    model = network.build(0)
    assert not model.training
    assert model(torch.zeros(2, *network.input_shape)).shape == (2, network.classes)


def test_operations_are_those_torch_counts(network):
    with FlopCounterMode(display=False) as counter:
        network.build(0)(torch.zeros(1, *network.input_shape))
    assert counter.get_total_flops() == network.flop


def test_initial_weights_are_distributed_as_torchs_own(network):
    """A maximum of 500 draws lies one per cent below its bound once in 150 times: torch's too are drawn from a seed."""
    for layer in network.build(0).modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = type(layer)(*_arguments(layer))
        for name, weight in layer.named_parameters():
            own = getattr(fresh, name)
            if weight.numel() > 500:
                assert weight.abs().max().item() == pytest.approx(own.abs().max().item(), rel=0.01)
                assert weight.std().item() == pytest.approx(own.std().item(), rel=0.1)
            assert weight.abs().max() <= layer.weight[0].numel() ** -0.5


def _arguments(layer: nn.Conv2d | nn.Linear) -> tuple:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels, layer.kernel_size
    return layer.in_features, layer.out_features


def test_table_4_and_table_5():
    """Cost and number of weights, worked out by hand from the tables."""
    assert round(MnistCnn().flop / 1e6, 1) == 27.8
    assert round(SvhnCnn().flop / 1e6, 1) == 80.8
    assert _weights(MnistCnn()) == 32 * 26 + 64 * 801 + 1024 * (64 * 7 * 7 + 1) + 10 * 1025
    assert _weights(SvhnCnn()) == 32 * 76 + 64 * 801 + 128 * 577 + 512 * (128 * 5 * 5 + 1) + 10 * 513


def _weights(network) -> int:
    return sum(weight.numel() for weight in network.build(0).parameters())


def test_pooling_before_relu_changes_neither_values_nor_gradients():
    convolution, pool, relu = Conv(4, 3, pool=2).modules((2, 9, 9))
    initialise(convolution, torch.Generator().manual_seed(0))
    images = torch.rand(8, 2, 9, 9, generator=torch.Generator().manual_seed(1)) - 0.5
    found = []
    for order in (nn.Sequential(convolution, pool, relu), nn.Sequential(convolution, relu, pool)):
        out = order(images)
        found.append([out, *torch.autograd.grad(out.square().sum(), convolution.parameters())])
    assert all(torch.equal(ours, papers) for ours, papers in zip(*found, strict=True))


def test_svhn_readings_of_the_normalisation():
    assert SvhnCnn().identity() != SvhnCnn(input="per-image").identity()
    assert torch.equal(PixelRange()(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 0.6, 0.3]
    ).view(3, 1, 1, 1)
    standard = Standardise()(images).flatten(1)
    assert torch.allclose(standard.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(standard.var(1, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-12)
    assert Standardise()(torch.full((1, 3, 8, 8), 0.5)).abs().max() == 0


def test_a_layer_nobody_knows_how_to_initialise_is_refused():
    with pytest.raises(TypeError, match="PReLU"):
        initialise(nn.Sequential(nn.PReLU()), torch.Generator())
