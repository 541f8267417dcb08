"""Mask R-CNN over patches: anchors and pools at their exact positions, over a pyramid with values written out."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from hf_geossl.evaluation.heads.detection import build_detector
from hf_geossl.modeling.dense_heads import ChannelNorm, PatchAnchors, SimplePyramid
from tests.helpers.tiny_models import timm_encoder


def test_anchors_and_pools_lie_where_patches_of_14_pixels_do() -> None:
    encoder = timm_encoder(14, 98)
    detector = build_detector(encoder, 98, 3, masks=True, channels=8, head_width=8, regions=64, proposals=300).eval()
    images = torch.zeros(1, 3, 98, 98)
    maps = detector.backbone(images)
    anchors = PatchAnchors(14)(ImageList(images, [(98, 98)]), list(maps.values()))[0]
    middles, sizes = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    assert len(anchors) == 6 * (28**2 + 14**2 + 7**2 + 4**2 + 2**2)
    # the finest map has four positions a patch, of 3.5 pixels
    torch.testing.assert_close(middles[: 6 * 28 : 6, 0], torch.arange(28) * 3.5 + 1.75)
    torch.testing.assert_close(middles[6 * 28 * 27 :: 6 * 28, 1][:1], torch.tensor([27 * 3.5 + 1.75]))
    torch.testing.assert_close(sizes[:6].prod(dim=1), torch.tensor([(2 * 3.5) ** 2, (8 * 3.5) ** 2] * 3))
    torch.testing.assert_close(sizes[:6:2, 1] / sizes[:6:2, 0], torch.tensor([0.5, 1.0, 2.0]))
    # a region is pooled from the place that it covers: maps that hold their own x
    coordinates = {
        str(level): ((torch.arange(side) + 0.5) * 98 / side).expand(1, 1, side, side)
        for level, side in enumerate((28, 14, 7))
    }
    coordinates["3"] = ((torch.arange(4) + 0.5) * 28).expand(1, 1, 4, 4)
    for box in ([60.0, 20.0, 74.0, 34.0], [20.0, 20.0, 76.0, 76.0]):
        pooled = detector.roi_heads.box_roi_pool(coordinates, [torch.tensor([box])], [(98, 98)])
        width = box[2] - box[0]
        expected = box[0] + (torch.arange(7) + 0.5) / 7 * width
        torch.testing.assert_close(pooled[0, 0, 3], expected, atol=2.0, rtol=0)
        assert pooled[0, 0, 3].diff().min() > 0


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
