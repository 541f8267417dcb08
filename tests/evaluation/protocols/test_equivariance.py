"""The equivariance benchmark: it does not leak, and it measures equivariance where there is some."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from hf_geossl.evaluation.encoders import Encoder, Tokens
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols.equivariance import (
    FLOORS,
    EquivarianceSettings,
    Fitted,
    _is_above,
    measure_equivariance,
    r2_by_angle,
)
from hf_geossl.evaluation.samples import Samples
from tests.helpers.demo_models import BANDS
from tests.helpers.supervised import (
    RenderedData,
    measure_quietly,
    small_model,
)

CPU = torch.device("cpu")


QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


@dataclass(frozen=True)
class Ramps(EvaluationData):
    """Images that grow brighter along a heading between -`widest` and `widest` degrees, and a little noise."""

    size: int = 16
    limit: int | None = 150
    widest: float = 80.0

    def samples(self, split: str, *, size: int | None = None, mode: str = "scene") -> Samples:
        side, count = size or self.size, self.limit or 150
        generator = np.random.default_rng(len(split))
        line = (np.arange(side) - (side - 1) / 2) / self.size
        headings = np.radians(generator.uniform(-self.widest, self.widest, size=count))
        rows = []
        for index, heading in enumerate(headings):
            ramp = 128 + 70 * (np.cos(heading) * line[None] + np.sin(heading) * line[:, None])
            image = np.clip(ramp + generator.normal(0, 2, (3, side, side)), 0, 255).astype(np.uint8)
            rows.append({"index": index, "image": torch.from_numpy(image)})
        told = {"dataset": "ramps", "split": split, "size": side, "limit": count, "widest": self.widest}
        return Samples(rows, told, {}, lambda index, row: row, list(range(count)))


class Heading(torch.nn.Module):
    """Stands for an encoder whose one feature is the heading of a ramp in radians, or else its direction: exactly equivariant."""

    name, device, width = "heading", CPU, 1

    def __init__(self, knows: bool = True, direction: bool = False) -> None:
        super().__init__()
        self.knows, self.direction, self.fingerprint = knows, direction, f"heading {knows} {direction}"

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255 if images.dtype == torch.uint8 else images

    def tokens(self, images: torch.Tensor) -> Tokens:
        right, down = images.diff(dim=3).mean(dim=(1, 2, 3)), images.diff(dim=2).mean(dim=(1, 2, 3))
        heading = torch.atan2(down, right) if self.knows else images[:, 0, 0, 0] * 977 % 1
        feature = torch.stack([heading.cos(), heading.sin()], dim=1) if self.direction else heading[:, None]
        return Tokens(feature[:, None, None], None, feature)

    def random_twin(self, seed: int) -> "Heading":
        return Heading(False, self.direction)


def test_an_equivariant_feature_is_told_apart_from_all_floors() -> None:
    settings = EquivarianceSettings(transformations=("rotation",), mlp_epochs=20, mlp_hidden_size=64, padded=False)
    encoder: Any = Heading()
    result = measure_equivariance(encoder, Ramps(), QUIET, settings)
    floors = result.details["floors"]["rotation_r2_ridge"]
    print(result.metrics, result.details["floors"])
    assert result.metrics["rotation_r2_ridge"] > 0.98
    assert floors["transformed image alone"] < 0.45  # headings of 160 degrees and 90 of rotation
    assert abs(floors["random weights"]) < 0.1
    assert set(floors) == set(FLOORS)
    errors = result.details["rotation_error_by_angle"]
    assert max(errors["model"]) < 5 < max(errors["random weights"])
    assert errors["angle"] == pytest.approx(np.arange(-40, 41, 10))
    by_angle = result.details["rotation_r2_by_angle"]
    assert min(by_angle["model"]) > 0.98
    assert by_angle["mean angle"][0] < -1 < 0.9 < by_angle["mean angle"][4]
    assert set(by_angle) == {"angle", "model", *FLOORS, "mean angle"}
    for picture in result.pictures.values():
        assert min(picture().size) > 100
    nothing: Any = Heading(False)
    result = measure_equivariance(nothing, Ramps(), QUIET, replace(settings, mlp_epochs=0))
    assert abs(result.metrics["rotation_r2_ridge"]) < 0.1
    assert result.details["beats_all_floors"]["rotation"] == {"ridge": False, "bilinear": False}


def test_r2_by_angle_adds_up_to_r2() -> None:
    generator = np.random.default_rng(0)
    angles = generator.uniform(-45, 25, size=500)
    predictions = 0.6 * angles + generator.normal(0, 5, size=500)
    by_angle, errors = r2_by_angle(predictions, angles)
    counts, _ = np.histogram(angles, bins=9, range=(-45, 45))
    filled = counts > 0
    assert filled.tolist() == [True] * 7 + [False] * 2
    assert np.isnan(by_angle[~filled]).all()
    assert np.isnan(errors[~filled]).all()
    assert counts[filled] @ by_angle[filled] / 500 == pytest.approx(r2_score(angles, predictions))
    assert counts[filled] @ errors[filled] / 500 == pytest.approx(np.abs(predictions - angles).mean())
    middle = np.abs(angles) < 5
    expected = 1 - np.square(predictions - angles)[middle].mean() / angles.var()
    assert by_angle[4] == pytest.approx(expected)  # its own variance would give less than 0


@pytest.mark.slow
@pytest.mark.parametrize("config_name", [None, "object"])
def test_scenes_are_seen_from_above_whatever_the_mode_and_it_is_told(config_name: str | None) -> None:
    settings = EquivarianceSettings(("rotation",), transformations_per_image=1, components=0, mlp_epochs=0)
    data = EvaluationData(size=32, limit=12, config_name=config_name)
    options = replace(QUIET, bootstrap=0)
    result = measure_equivariance(load_encoder(small_model(size=32)), data, options, settings)
    plain = measure_equivariance(load_encoder(small_model(size=32)), replace(data, config_name=None), options, settings)
    assert result.metrics == plain.metrics
    assert (result.details["mode"], result.details["padded_mode"]) == ("topdown", "scene")


@pytest.mark.slow
def test_where_all_directions_are_alike_only_products_tell_the_angle() -> None:
    """
    The angle is drawn independently of the image, and the turned image is as likely with every angle: so neither image's
    features correlate with it, and no sum of a function of each predicts it.
    """
    settings = EquivarianceSettings(transformations=("rotation",), mlp_epochs=0, padded=False)
    encoder: Any = Heading(direction=True)
    result = measure_equivariance(encoder, Ramps(limit=300, widest=180.0), QUIET, settings)
    print(result.metrics, result.details["floors"])
    assert result.metrics["rotation_r2_ridge"] == pytest.approx(0, abs=0.03)
    assert (
        result.metrics["rotation_r2_bilinear"] > 0.97
    )  # r^2 sin(angle) is linear in the products, up to 45 degrees nearly
    for floor in ("transformed image alone", "random weights"):
        assert result.details["floors"]["rotation_r2_bilinear"][floor] == pytest.approx(0, abs=0.05)
    assert result.details["beats_all_floors"]["rotation"]["ridge"] is False


def test_a_floor_is_beaten_only_by_more_than_chance() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(400, 1))

    def fitted(noise: float) -> Fitted:
        return Fitted(truth + noise * generator.normal(size=truth.shape), truth, 100)

    good, other, bad = fitted(0.5), fitted(0.51), fitted(0.9)
    assert _is_above(good, bad, QUIET)
    assert not _is_above(bad, good, QUIET)
    assert not _is_above(good, other, QUIET)
    assert not _is_above(other, good, QUIET)
    hopeless, worse = fitted(1.5), fitted(3.0)
    assert not _is_above(hopeless, worse, QUIET)  # below 0 there is nothing to beat with


@pytest.mark.slow
def test_padding_gives_translation_away_and_borderless_images_do_not(tmp_path: Path) -> None:
    encoder: Encoder = load_encoder(small_model())
    settings = EquivarianceSettings(
        transformations=("translation",), components=0, mlp_epochs=0, transformations_per_image=2
    )
    options = replace(QUIET, cache_dir=tmp_path, bootstrap=0)
    data = RenderedData(limit=150)
    result = measure_equivariance(encoder, data, options, settings)
    print(result.metrics, result.details["floors"])
    assert result.metrics["translation_r2_ridge_zeros"] > 0.75
    assert result.metrics["translation_r2_ridge_zeros_variance_weighted"] > 0.75
    for name in ("translation_r2_ridge", "translation_r2_ridge_reflection"):
        assert result.metrics[name] < 0.2
    assert result.details["floors"]["translation_r2_ridge_zeros"]["transformed image alone"] > 0.75
    assert result.details["floors"]["translation_r2_ridge"]["thumbnail"] < 0.2
    assert list(tmp_path.iterdir())
    again = measure_equivariance(encoder, data, options, settings)
    plain = measure_equivariance(encoder, data, replace(options, cache_dir=None, batch_size=48), settings)
    assert again.metrics == result.metrics
    assert plain.metrics == pytest.approx(result.metrics, abs=2e-3)


def test_colours_of_bands_are_refused_before_anything_is_read() -> None:
    data = EvaluationData(image_format=BANDS)
    with pytest.raises(
        ValueError, match=r"images are 5 channels: .*: leave it out, by .*=\[rotation,translation,blur\]"
    ):
        measure_equivariance(load_encoder(small_model()), data, QUIET, EquivarianceSettings())


def test_settings_out_of_range_are_told() -> None:
    with pytest.raises(ValueError, match="transformations must be some of rotation, .* got shear"):
        EquivarianceSettings(transformations=("shear",))
    with pytest.raises(ValueError, match="transformations_per_image must be at least 1"):
        EquivarianceSettings(transformations_per_image=0)


@pytest.mark.slow
def test_changes_of_colour_and_blur_are_told_by_who_learned_to_compare(comparing: Encoder) -> None:
    data, names = RenderedData(size=32, limit=150), ("color", "blur")
    result = measure_quietly(
        "equivariance", comparing, data, transformations=names, components=0, mlp_epochs=0, padded=False
    )
    # .84, .79 over .64, and .73, .70 over .43. Rotation is not asked for: on scenes whose directions are all alike, no
    # sum of a feature of the image and one of the turned image correlates with the angle, so that ridge finds none in any.
    for metric, gap in (("color_r2_ridge_variance_weighted", 0.1), ("blur_r2_ridge", 0.15)):
        random = result.details["floors"][metric]["random weights"]
        assert random < 0.75
        assert result.metrics[metric] > random + gap
    assert result.details["beats_all_floors"] == {"color": {"ridge": True}, "blur": {"ridge": True}}
