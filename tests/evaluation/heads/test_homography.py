"""Homographies and pairs of patches: torchvision's, and where they lie."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from hf_geossl.evaluation.heads.homography import cut_patches, make_pairs, map_points, patch_side, solve_homography


def corner_draws(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    square = torch.tensor([[8, 8], [40, 8], [8, 40], [40, 40]], dtype=torch.float64).expand(batch, 4, 2)
    return square, square + 16 * torch.rand(batch, 4, 2, generator=generator, dtype=torch.float64) - 8


def test_homographies_take_corners_to_corners_as_torchvisions_do() -> None:
    sources, targets = corner_draws(5)
    found = solve_homography(sources, targets)
    torch.testing.assert_close(map_points(found, sources), targets, atol=1e-9, rtol=0)
    # torchvision's coefficients go from the end points to the start points
    for one, source, target in zip(found, sources, targets, strict=True):
        other = TF._geometry._get_perspective_coeffs(target.tolist(), source.tolist())
        torch.testing.assert_close(one.flatten()[:8], torch.tensor(other, dtype=torch.float64), atol=1e-4, rtol=1e-4)


def test_patches_show_the_positions_that_the_homography_says() -> None:
    line = torch.arange(48) + 0.5
    image = torch.stack(torch.meshgrid(line, line, indexing="xy"))[None].expand(5, -1, -1, -1)  # x and y of each pixel
    sources, targets = corner_draws(5)
    inner = sources + (targets - sources) * 0.8  # all corners inside
    homographies = solve_homography(sources, inner)
    patches = cut_patches(image, homographies, sources[:, 0], 32)
    middle = torch.arange(32, dtype=torch.float64) + 8.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    expected = map_points(homographies, torch.stack([x, y], dim=-1).flatten(0, 1).expand(5, -1, -1))
    torch.testing.assert_close(
        patches.flatten(2).transpose(1, 2).double(), expected.clamp(0.5, 47.5), atol=1e-3, rtol=0
    )


def test_pairs_lie_in_the_image_and_the_first_patch_is_cut_out_of_it() -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (64, 3, 60, 60), generator=generator, dtype=torch.uint8)
    pairs = make_pairs(images, 32, torch.rand(64, 5, 2, generator=generator))
    moved = pairs.corners + pairs.shifts
    assert moved.min() >= 0
    assert moved.max() <= 60
    assert pairs.shifts.abs().max() <= 8
    assert pairs.shifts.abs().max() > 7.9
    assert pairs.corners[:, 0].min() == 8
    assert pairs.corners[:, 0].max() == 60 - 32 - 8
    left, top = pairs.corners[5, 0].int().tolist()
    grey = TF.rgb_to_grayscale(images[5].float() / 255)[0]
    torch.testing.assert_close(pairs.first[5, 1], grey[top : top + 32, left : left + 32], atol=1e-3, rtol=0)
    unmoved = make_pairs(images, 32, torch.cat([torch.rand(64, 1, 2), torch.full((64, 4, 2), 0.5)], dim=1))
    torch.testing.assert_close(unmoved.first, unmoved.second, atol=1e-4, rtol=0)
    assert patch_side(240, 16) == 128
    assert patch_side(96, 8) == 48
    with pytest.raises(ValueError, match="do not fit into images of 20"):
        patch_side(20, 16)
