import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from core.convolution import FEW_CHANNELS, ImageConvolution
from core.layers import Conv


@pytest.fixture(params=[(1, 5, 2), (3, 5, 0), (3, 3, 1)], ids=str)
def pair(request):
    """Ours and torch's own with the same weights, and images."""
    channels, size, padding = request.param
    generator = torch.Generator().manual_seed(0)
    ours = ImageConvolution(channels, 4, size, padding=padding, dtype=torch.float64)
    for weight in ours.parameters():
        weight.data.uniform_(-1, 1, generator=generator)
    torchs = nn.Conv2d(channels, 4, size, padding=padding, dtype=torch.float64)
    torchs.load_state_dict(ours.state_dict())
    images = torch.rand(3, channels, 9, 8, generator=generator, dtype=torch.float64)
    return ours, torchs, images


def asked(layer, images, *, of_images=True, of_weights=True):
    images = images.clone().requires_grad_()
    wanted = [*([images] if of_images else []), *(layer.parameters() if of_weights else [])]
    return torch.autograd.grad(layer(images).sin().sum(), wanted)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_torchs_own(pair, layout):
    ours, torchs, images = pair
    ours, torchs, images = (each.to(memory_format=layout) for each in (ours, torchs, images))
    assert torch.equal(ours(images.clone().requires_grad_()), torchs(images))
    for mine, its in zip(asked(ours, images), asked(torchs, images), strict=True):
        assert torch.allclose(mine, its, rtol=1e-12, atol=1e-12)


def test_a_second_differentiation_is_torchs_own(pair):
    """As Hamm's penalty needs it: the weights' gradient of the length of the images' gradient."""
    found = []
    for layer in pair[:2]:
        images = pair[2].clone().requires_grad_()
        slope = torch.autograd.grad(layer(images).sin().sum(), images, create_graph=True)[0]
        found.append(torch.autograd.grad(slope.square().sum(), [images, *layer.parameters()]))
    for mine, its in zip(*found, strict=True):
        assert torch.allclose(mine, its, rtol=1e-10, atol=1e-10)


class Called(TorchDispatchMode):
    """Remembers which of the two gradients were computed."""

    def __init__(self):
        super().__init__()
        self.gradients = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = {torch.ops.aten.col2im.default: "images", torch.ops.aten.convolution_backward.default: "weights"}
        self.gradients |= {names[func]} if func in names else set()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("of_images", "of_weights"), [(True, False), (False, True), (True, True)])
def test_only_what_is_asked_for_is_computed(pair, of_images, of_weights):
    with Called() as called:
        asked(pair[0], pair[2], of_images=of_images, of_weights=of_weights)
    assert called.gradients == {*(["images"] if of_images else []), *(["weights"] if of_weights else [])}


def test_gradients_in_bfloat16_are_torchs_own(pair):
    ours, torchs, images = (copy.deepcopy(each).float() for each in pair)
    with torch.autocast("cpu", torch.bfloat16):
        found = asked(ours, images), asked(torchs, images)
    assert all(torch.equal(mine, its) for mine, its in zip(*found, strict=True))


def test_it_is_where_images_enter():
    assert isinstance(Conv(4, 3).modules((FEW_CHANNELS, 8, 8))[0], ImageConvolution)
    assert type(Conv(4, 3).modules((FEW_CHANNELS + 1, 8, 8))[0]) is nn.Conv2d
