"""Maps of several strides: sizes, and values written out."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign

from hf_geossl.evaluation.heads.pyramid import ChannelNorm, RescaleNeck, SimplePyramid, layers_of_maps


def test_layers_are_those_of_papers_and_evenly_spaced_elsewhere() -> None:
    assert layers_of_maps(12) == (2, 5, 8, 11)
    assert layers_of_maps(24) == (5, 11, 17, 23)
    assert layers_of_maps(4) == (0, 1, 2, 3)
    assert layers_of_maps(3) == (0, 0, 1, 2)
    assert layers_of_maps(1) == (0, 0, 0, 0)


def test_the_neck_gives_each_map_its_stride() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 8, 7, 4) for _ in range(4)]
    neck = RescaleNeck(8).eval()
    found = neck(maps)
    assert [tuple(part.shape) for part in found] == [(2, 8, 28, 16), (2, 8, 14, 8), (2, 8, 7, 4), (2, 8, 4, 2)]
    assert torch.equal(found[2], maps[2])
    assert torch.equal(found[3][:, :, 1, 0], maps[3][:, :, 2:4, 0:2].amax(dim=(2, 3)))
    assert torch.equal(found[3][:, :, 3, 1], maps[3][:, :, 6, 2:4].amax(dim=2))  # what is left of an odd side
    weight, bias = neck.scales[1].weight, neck.scales[1].bias  # (in, out, 2, 2): each position becomes a square of four
    expected = torch.einsum("bi,io->bo", maps[1][:, :, 3, 2], weight[:, :, 1, 0]) + bias
    torch.testing.assert_close(found[1][:, :, 7, 4], expected)
    with pytest.raises(ValueError, match="maps must be 4, got 3"):
        neck(maps[:3])


def test_each_position_is_normalised_over_its_channels() -> None:
    torch.manual_seed(0)
    maps, norm = torch.randn(2, 8, 3, 5), ChannelNorm(8)
    torch.nn.init.normal_(norm.weight)
    torch.testing.assert_close(
        norm(maps)[1, :, 2, 4], F.layer_norm(maps[1, :, 2, 4], (8,), norm.weight, norm.bias), rtol=1e-5, atol=1e-6
    )


def test_the_simple_pyramid_feeds_torchvisions_detectors() -> None:
    torch.manual_seed(0)
    last = torch.randn(2, 8, 7, 4, requires_grad=True)
    pyramid = SimplePyramid(8, 16)
    levels = pyramid(last)
    assert {name: tuple(level.shape) for name, level in levels.items()} == {
        "0": (2, 16, 28, 16),
        "1": (2, 16, 14, 8),
        "2": (2, 16, 7, 4),
        "3": (2, 16, 4, 2),
        "pool": (2, 16, 2, 1),
    }
    assert torch.equal(levels["pool"], levels["3"][:, :, ::2, ::2])
    for name in "0123":
        torch.testing.assert_close(levels[name].mean(dim=1), torch.zeros(2, *levels[name].shape[2:]), atol=1e-5, rtol=0)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=3, sampling_ratio=2)
    boxes = [torch.tensor([[0.0, 0.0, 30.0, 50.0]]), torch.tensor([[4.0, 4.0, 8.0, 9.0]])]
    assert pool(levels, boxes, [(112, 64)] * 2).shape == (2, 16, 3, 3)
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    sum(level.square().sum() for level in levels.values()).backward()
    assert last.grad is not None
    assert last.grad.abs().min() > 0
    with pytest.raises(ValueError, match="width must be a multiple of 4, got 6"):
        SimplePyramid(6)
