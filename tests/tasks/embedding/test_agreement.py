"""What two small images have in common stands out of noise, or says nothing."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from sklearn.datasets import load_sample_image

from hf_geossl.tasks.embedding.agreement import LEAST_PLACES, compared_pixels, differences, prominent_places


def difference(one, other):
    small = [torch.from_numpy(compared_pixels(image))[None] for image in (one, other)]
    return differences(*small, torch.tensor([float(min(*one.size, *other.size))])).item()


def places_of(image):
    small = torch.from_numpy(compared_pixels(image))[None]
    return prominent_places(small, torch.tensor([float(min(image.size))])).item()


def recompressed(image, scale, quality):
    file = io.BytesIO()
    image.resize([round(side * scale) for side in image.size]).save(file, "JPEG", quality=quality)
    return Image.open(file)


def crops(low_contrast):
    """Crops of photographs, 64 pixels a side: those of skies and shadows, or the others."""
    found = []
    for name in ("china.jpg", "flower.jpg"):
        image = Image.fromarray(load_sample_image(name))
        places = [(x, y) for x in range(0, 577, 64) for y in range(0, 363, 64)]
        for x, y in places:
            crop = image.crop((x, y, x + 64, y + 64))
            if (compared_pixels(crop).astype(float).std(axis=(0, 1)).mean() < 6) == low_contrast:
                found.append(crop)
    return found


@pytest.mark.parametrize("low_contrast", [False, True])
def test_copies_of_photographs_agree_and_other_crops_do_not(low_contrast):
    images = crops(low_contrast)
    assert len(images) >= (20 if low_contrast else 90)
    copies = [recompressed(image, 0.7 + number % 8 / 8, 40 + number % 5 * 12) for number, image in enumerate(images)]
    one, other = (torch.from_numpy(np.stack([compared_pixels(image) for image in side])) for side in (images, copies))
    sides = torch.tensor([float(min(*image.size, 64)) for image in copies])
    count = len(images)
    agree = torch.stack([differences(one, other.roll(-turn, 0), sides.roll(-turn)) < 1 for turn in range(count)])
    assert low_contrast or agree[0].float().mean() >= 0.97
    assert agree[1:].sum() <= 0.01 * count


def test_equal_images_differ_by_nothing_and_others_have_no_number():
    first, second = crops(False)[:2]
    assert difference(first, first) == pytest.approx(0, abs=1e-6)
    assert difference(first, second) == math.inf
    assert difference(first, ImageOps.mirror(first)) == math.inf
    assert difference(first, Image.eval(first, lambda level: min(255, level + 30))) == math.inf


def test_a_bright_corner_of_another_size_is_no_copy():
    pictures = []
    for side in (40, 43):
        image = Image.new("RGB", (64, 64))
        ImageDraw.Draw(image).polygon([(64 - side, 0), (64, 0), (64, side)], fill=(200, 80, 50))
        pictures.append(image.filter(ImageFilter.GaussianBlur(1)))
    assert difference(*pictures) == math.inf
    assert difference(pictures[0], recompressed(pictures[0], 0.8, 60)) < 0.3


def test_one_colour_noise_and_a_slope_are_no_content():
    draw = np.random.default_rng(0)
    slope = np.linspace(0, 4, 64)[:, None, None]
    for added in (0, draw.normal(0, 2, (64, 64, 3)), slope, slope + draw.normal(0, 1, (64, 64, 1))):
        image = Image.fromarray((np.full((64, 64, 3), 120.0) + added).round().astype(np.uint8))
        assert places_of(image) < LEAST_PLACES
    assert places_of(crops(False)[0]) > 3 * LEAST_PLACES


def test_noise_of_a_large_picture_counts_less():
    image = crops(True)[0]
    assert places_of(image.resize((256, 256))) > places_of(image)
