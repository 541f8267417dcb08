"""The decoders in the demo, beside the pretraining model and its transformation path."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_geossl.demo import heads_reconstruction as heads
from hf_geossl.demo.loading import open_model
from hf_geossl.demo.pictures import read_upload
from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from hf_geossl.views.transformation_path import TransformationParameters, TransformationPath
from tests.helpers.demo_models import (
    FORMATS,
    MEAN,
    STD,
    encoded,
    model_of,
    noise,
    normalized,
    pixels,
    save,
    whole_model,
)


@pytest.mark.parametrize("transformation", ["se2", "rotation", "translation", "color", "blur"])
def test_path_shows_what_the_model_reconstructs(tmp_path: Path, transformation: str) -> None:
    model = open_model(save(whole_model("equicoherent", transformation=transformation), tmp_path))
    path = TransformationPath(transformation, 2)
    controls = heads.path_controls(heads.path_of(model))
    values = [low + 0.8 * (high - low) for _, _, _, low, high, _ in controls]
    ends = path.draw(1, torch.Generator().manual_seed(0))
    chosen = {
        "angles": torch.tensor([math.radians(values[0])]),
        "translations": torch.tensor([[0.01 * value for value in values[-2:]]]),
        **{
            name: torch.tensor([0.01 * v])
            for name, v in zip(("brightness", "contrast", "saturation", "hue"), values, strict=False)
        },
        "blur_sigma": torch.tensor([values[0]]),
    }
    used = {name: value for name, value in chosen.items() if bool(getattr(ends, name).any())}
    zero = {name: torch.zeros(1) for name in ("angles", "brightness", "contrast", "saturation", "hue", "blur_sigma")}
    parameters = TransformationParameters(
        **{**zero, "translations": torch.zeros(1, 2), **used}, transformed=torch.tensor([True])
    )
    picture, samples = noise(6), [noise(7), noise(8)]
    middle = picture.crop((3, 3, 29, 29)).resize((32, 32), Image.Resampling.BILINEAR)
    end, between = path.render(pixels(picture), parameters, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        views = torch.stack([pixels(middle)[0], end[0]])[None]
        expected = model.whole(views, intermediate_pixel_values=between).reconstructions[0]
    for point in range(4):
        found = heads.path_point(model, picture, samples, values, point)
        true = [pixels(picture)[0], *between[0], end[0]][point]
        torch.testing.assert_close((found.true - MEAN) / STD, true, atol=2e-5, rtol=0)
        torch.testing.assert_close((found.final - MEAN) / STD, end[0], atol=2e-5, rtol=0)
        if point in (0, 3):
            assert found.reconstructed is None
            continue
        torch.testing.assert_close(
            found.reconstructed, (expected[point - 1] * STD + MEAN).clamp(0, 1), atol=1e-4, rtol=1e-3
        )
        error = (expected[point - 1] - between[0, point - 1]).square().mean().item()
        assert found.error == pytest.approx(error, rel=1e-3)
        others = [path.render(pixels(one), parameters, IMAGENET_MEAN, IMAGENET_STD)[1][0, point - 1] for one in samples]
        mean_image = (torch.stack(others).mean(0) - between[0, point - 1]).square().mean().item()
        assert found.mean_image_error == pytest.approx(mean_image, rel=1e-3)


def test_path_of_a_model_that_carries_the_task_and_of_one_that_reconstructs_the_end(tmp_path: Path) -> None:
    fields = {"reconstruction": "blur", "num_intermediate": 1, "reconstruct_final": True}
    model = open_model(save(whole_model("gtsa", **fields), tmp_path))
    picture = noise(9)
    middle = picture.crop((3, 3, 29, 29)).resize((32, 32), Image.Resampling.BILINEAR)
    path = TransformationPath("blur", 1)
    parameters = path.draw(1)
    parameters.blur_sigma[:] = 1.5
    end, between = path.render(pixels(picture), parameters, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        expected = model.whole(
            pixels(middle)[None],
            crop_boxes=torch.tensor([[[0.0, 0, 32, 32]]]),
            quarter_turns=torch.zeros(1, 1, dtype=torch.int64),
            transformed_pixel_values=end,
            intermediate_pixel_values=between,
        ).reconstructions[0]
    assert heads.path_point(model, picture, [picture], [1.5], 0).reconstructed is None
    for point in (1, 2):
        found = heads.path_point(model, picture, [picture], [1.5], point).reconstructed
        torch.testing.assert_close(found, (expected[point - 1] * STD + MEAN).clamp(0, 1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", FORMATS)
def test_paths_of_other_images_move_all_channels_alike_and_have_a_baseline_without_samples(
    kind: str, tmp_path: Path
) -> None:
    model, described = model_of("equicoherent", kind, tmp_path, transformation="color"), FORMATS[kind]
    path = TransformationPath("color", 2)
    picture, source = read_upload(encoded(kind), described), normalized(kind)
    controls = heads.path_controls(heads.path_of(model), described)
    assert [(low, high) for _, _, _, low, high, _ in controls] == [(-0.4, 0.4), (-40, 40)]
    parameters = path.draw(1, torch.Generator().manual_seed(0), described.num_channels)
    parameters.brightness[:], parameters.contrast[:] = 0.3, -0.2  # deviations, and share
    end, between = path.render(source, parameters, described.mean, described.std, clip=False)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (described.mean, described.std))
    found = heads.path_point(model, picture, [], [0.3, -20.0], 2)
    torch.testing.assert_close((found.final - mean) / std, end[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((found.true - mean) / std, between[0, 1], atol=1e-4, rtol=1e-4)
    assert found.mean_image_error == pytest.approx(between[0, 1].square().mean().item(), rel=1e-3)
    with torch.no_grad():
        views = torch.stack([(found.first - mean) / std, end[0]])[None]
        expected = model.whole(views, intermediate_pixel_values=between).reconstructions[0, 1]
    torch.testing.assert_close((found.reconstructed - mean) / std, expected, atol=1e-2, rtol=1e-3)  # not clipped
    other = read_upload(encoded(kind, 1), described)
    mean_of_two = heads.path_point(model, picture, [picture, other], [0.3, -20.0], 2).mean_image_error
    others = path.render(normalized(kind, 1), parameters, described.mean, described.std, clip=False)[1][0, 1]
    assert mean_of_two == pytest.approx(((others - between[0, 1]) / 2).square().mean().item(), rel=1e-3)
