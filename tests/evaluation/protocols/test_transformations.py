"""The transformations of the equivariance benchmark: torchvision's, without borders, by the image's index."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from hf_geossl.evaluation.protocols.transformations import SampledTransform, center_crop, larger_size, target_ranges
from tests.helpers.supervised import SIZE, RenderedData

CPU = torch.device("cpu")


def batch_of(images: torch.Tensor, index: list[int] | None = None) -> dict[str, Any]:
    return {"image": images, "index": torch.tensor(index or list(range(len(images))))}


@pytest.mark.parametrize("transformation", ["rotation", "translation", "blur"])
@pytest.mark.parametrize("size", [16, 32, 64, 97])
def test_no_border_is_seen_in_the_middle(transformation: str, size: int) -> None:
    white = torch.full((64, 3, larger_size(size), larger_size(size)), 255, dtype=torch.uint8)
    white[..., 0, :] = white[..., -1, :] = white[..., 0] = white[..., -1] = 0  # nor the outermost pixels
    images, _ = SampledTransform(transformation, size, "zeros", 0, "test", 0).transform(CPU).apply(batch_of(white))
    assert images.shape == (64, 3, size, size)
    inner = images if transformation == "blur" else images[..., 1:-1, 1:-1]
    assert inner.min() > 0.999
    small = center_crop(white, size)
    if transformation != "blur":
        padded, _ = SampledTransform(transformation, size, "zeros", 0, "test", 0).transform(CPU).apply(batch_of(small))
        assert padded.amin(dim=(1, 2, 3)).median() < 0.9


def test_what_is_done_is_what_is_asked() -> None:
    size = 32
    scene = next(RenderedData(limit=8).samples("test", size=larger_size(size)).batches(8))

    def transformed(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        images, further = SampledTransform(name, size, "zeros", 3, "test", 1).transform(CPU).apply(scene)
        for values, (low, high) in zip(further["target"].T, target_ranges(name, size).values(), strict=True):
            assert low <= values.min() < values.max() <= high
        return images, further["target"]

    whole = scene["image"].float() / 255
    images, angles = transformed("rotation")
    bilinear = TF.InterpolationMode.BILINEAR
    for image, found, angle in zip(whole, images, angles[:, 0].tolist(), strict=True):
        expected = center_crop(TF.affine(image, angle, [0, 0], 1.0, [0.0, 0.0], interpolation=bilinear), size)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    images, shifts = transformed("translation")
    assert target_ranges("translation", 224)["x"] == pytest.approx((-10, 10))
    for image, found, (x, y) in zip(whole, images, shifts.tolist(), strict=True):
        expected = center_crop(TF.affine(image, 0.0, [x, y], 1.0, [0.0, 0.0], interpolation=bilinear), size)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    images, changes = transformed("color")
    for image, found, (b, c, s, h) in zip(center_crop(whole, size), images, changes.tolist(), strict=True):
        expected = TF.adjust_contrast(TF.adjust_brightness(image, 1 + b), 1 + c)
        expected = TF.adjust_hue(TF.adjust_saturation(expected, 1 + s), h)
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)
    images, sigmas = transformed("blur")
    for image, found, sigma in zip(whole, images, sigmas[:, 0].tolist(), strict=True):
        expected = center_crop(TF.gaussian_blur(image, [13, 13], [sigma, sigma]), size)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_an_image_is_transformed_by_its_index_whatever_the_batch() -> None:
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)
    done = SampledTransform("rotation", 16, "reflection", 0, "train", 0)
    together = done.transform(CPU).apply(batch_of(images, [0, 5, 1023, 1024, 5000, 7]))
    alone = done.transform(CPU).apply(batch_of(images[3:5], [1024, 5000]))
    assert torch.equal(together[0][3:5], alone[0])
    assert torch.equal(together[1]["target"][3:5], alone[1]["target"])
    drawn = {float(together[1]["target"][0, 0])}
    for other in ({"seed": 1}, {"split": "test"}, {"repeat": 1}):
        drawn.add(float(replace(done, **other).transform(CPU).apply(batch_of(images[:1]))[1]["target"]))
    assert len(drawn) == 4


def test_larger_images_leave_as_much_on_both_sides() -> None:
    for size in (8, 33, SIZE, 96, 224):
        assert (larger_size(size) - size) % 2 == 0
        assert larger_size(size) >= size * 2**0.5 + 1
