"""What two small images have in common stands out of noise, or says nothing."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from sklearn.datasets import load_sample_image

from hf_geossl.tasks.embedding.agreement import LEAST_AGREEMENT, LEAST_CONTENT, SIDE, agreement, content, spectra


def small(image):
    return torch.from_numpy(np.array(image.resize((SIDE, SIDE), Image.Resampling.BOX)))[None]


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
            if (np.asarray(small(crop)[0], float).var(axis=(0, 1)).mean() < 36) == low_contrast:
                found.append(crop)
    return found


def test_spectra_are_cosine_transforms_of_orthonormal_colours():
    image = torch.randint(0, 256, (1, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0))
    brightness = dctn(image[0].double().numpy().sum(axis=2) / np.sqrt(3), norm="ortho")
    made = spectra(image)
    assert np.allclose(made[0, :, 0].reshape(SIDE, SIDE), brightness, atol=1e-3)
    assert made.square().sum() == pytest.approx(image.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("low_contrast", [False, True])
def test_copies_of_photographs_agree_and_other_crops_do_not(low_contrast):
    images = crops(low_contrast)
    one = torch.cat([spectra(small(image)) for image in images])
    copies = [recompressed(image, 0.7 + number % 8 / 8, 40 + number % 5 * 12) for number, image in enumerate(images)]
    other = torch.cat([spectra(small(copy)) for copy in copies])
    shown = torch.minimum(content(one), content(other)) >= LEAST_CONTENT
    assert shown.sum() >= (8 if low_contrast else 50)
    one, other = one[shown], other[shown]
    count = len(one)
    firsts, seconds = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
    agreed = agreement(one[firsts.flatten()], other[seconds.flatten()]).reshape(count, count) >= LEAST_AGREEMENT
    assert agreed.diagonal().float().mean() >= 0.99
    assert agreed.sum() - agreed.diagonal().sum() <= 0.01 * count


def test_one_colour_noise_and_a_slope_are_no_content():
    draw = np.random.default_rng(0)
    slope = np.linspace(0, 6, 64)[:, None, None]
    for added in (0, draw.normal(0, 2, (64, 64, 3)), slope, slope + draw.normal(0, 1, (64, 64, 1))):
        image = Image.fromarray((np.full((64, 64, 3), 120.0) + added).round().astype(np.uint8))
        assert content(spectra(small(image))) < LEAST_CONTENT
    assert content(spectra(small(crops(False)[0]))) > 4 * LEAST_CONTENT
