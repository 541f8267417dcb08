"""Heatmaps of keypoints: crops, targets, and decoding to a part of a pixel."""

import numpy as np
import torch

from hf_geossl.evaluation.heads.keypoints import cut_crops, decode_heatmaps, draw_heatmaps


def test_crops_show_the_frame_that_they_are_cut_from() -> None:
    line = (torch.arange(64) * 3).to(torch.uint8)
    images = torch.stack([line.expand(64, 64), line[:, None].expand(64, 64), line.expand(64, 64)])[None].repeat(
        2, 1, 1, 1
    )
    frames = torch.tensor([[10.0, 20.0, 24.0], [4.5, 6.25, 50.0]])
    crops = cut_crops(images, torch.tensor([1, 0]), frames, 16)
    for crop, (left, top, side) in zip(crops, frames, strict=True):
        middles = (torch.arange(16) + 0.5) / 16 * side
        torch.testing.assert_close(crop[0, 5] * 255, (left + middles - 0.5) * 3, atol=1e-2, rtol=0)
        torch.testing.assert_close(crop[1, :, 5] * 255, (top + middles - 0.5) * 3, atol=1e-2, rtol=0)


def test_points_survive_being_drawn_as_heatmaps_to_a_part_of_a_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.tensor([[10.0, -4.0, 48.0], [30.0, 12.0, 24.0], [0.0, 0.0, 96.0]])
    places = 0.15 + 0.7 * torch.rand(3, 5, 2, generator=generator)
    points = torch.cat([frames[:, None, :2] + places * frames[:, None, 2:], torch.full((3, 5, 1), 2.0)], dim=-1)
    points[0, 0, 2] = 0
    points[0, 1, 0] = -3
    heatmaps, weights = draw_heatmaps(points, frames, 24, 2.0)
    assert weights[0].tolist() == [0, 0, 1, 1, 1]
    assert weights[1:].min() == 1
    decoded, scores = decode_heatmaps(heatmaps.numpy(), frames.numpy(), 2.0)
    seen = weights.bool().numpy()
    pixel = (frames[:, 2] / 24).numpy()[:, None]
    errors = np.linalg.norm(decoded - points[..., :2].numpy(), axis=-1) / pixel
    assert errors[seen].max() < 0.1  # a whole pixel's rounding alone would be up to .7
    assert (scores[seen] > 0.8).all()
