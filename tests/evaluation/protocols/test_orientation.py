"""Orientation of objects: the angle that is in the tokens, and none that is not."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.data import SEMANTIC_CLASSES, THING_CLASSES, load_scenes
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols.orientation import OrientationSettings, angular_errors, measure_orientation
from tests.helpers.pixel_encoder import Pixels, pixel_encoder
from tests.helpers.supervised import (
    TurnedData,
    measure_quietly,
)

OPTIONS = EvaluationOptions(batch_size=16, bootstrap=20, cache_dir=None, progress=False)


def test_angular_errors_go_the_short_way_round() -> None:
    angles = np.radians([10.0, -170.0, 90.0, 0.0])
    guesses = np.radians([350.0, 170.0, 90.0, 180.0])
    predictions = 3 * np.stack([np.cos(guesses), np.sin(guesses)], axis=1)
    np.testing.assert_allclose(angular_errors(predictions, angles), [20, 20, 0, 180], atol=1e-9)


class Compass(Pixels):
    """Tokens that say which way the kite in their place points; found by the image, as a very good model would."""

    def __init__(self, patch_size: int, images: torch.Tensor, tokens: torch.Tensor) -> None:
        super().__init__(patch_size)
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("tokens", tokens)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.tokens[torch.cdist(images.flatten(1), self.images).argmin(dim=1)] @ self.matrix


def test_angles_are_those_of_the_datas_mode_unless_the_settings_name_one() -> None:
    encoder, options = pixel_encoder(8), replace(OPTIONS, bootstrap=0)

    def measure(config_name: str | None, mode: str | None) -> dict[str, Any]:
        data = EvaluationData(size=64, limit=120, config_name=config_name)
        found = measure_orientation(encoder, data, options, OrientationSettings(mode=mode))
        assert found.details["mode"] == (mode or config_name or "scene")
        return {**found.metrics, **{name: found.details[name] for name in ("train_objects", "test_objects")}}

    own = {mode: measure(mode, None) for mode in ("scene", "topdown", "object")}
    assert len({entry["angular_error"] for entry in own.values()}) == 3
    assert measure(None, None) == own["scene"]
    assert measure("object", "topdown") == measure(None, "topdown") == own["topdown"]


def test_angles_that_are_in_the_tokens_are_read_and_others_are_not() -> None:
    size, side, kite = 64, 8, THING_CLASSES.index("kite")
    encoder = pixel_encoder(side)
    pixels, tokens = [], torch.zeros(300, 8, 8, encoder.width)
    rows = [row for split in ("train", "test") for row in load_scenes(split, size, 150)]
    for row, maps in zip(rows, tokens, strict=True):
        pixels.append(encoder.normalize(torch.from_numpy(np.array(row["image"])).permute(2, 0, 1)[None])[0])
        for item in row["objects"]:
            if item["category"] == kite:
                x1, y1, x2, y2 = (round(edge / side) for edge in item["bbox"])
                direction = torch.tensor([math.cos(item["angle"]), math.sin(item["angle"])])
                maps[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1), :2] = direction
    compass = Encoder(Compass(side, torch.stack(pixels), tokens.flatten(1, 2)), "compass", (0.5,) * 3, (0.5,) * 3, size)
    data = EvaluationData(size=size, limit=150)
    blind = measure_orientation(encoder, data, OPTIONS, OrientationSettings())
    result = measure_orientation(compass, data, OPTIONS, OrientationSettings())
    # not 0: some kites cover each other
    assert result.metrics["angular_error"] < 20 < 60 < blind.metrics["angular_error"]
    assert result.details["floors"]["mean_direction"]["angular_error"] == pytest.approx(90, abs=20)
    assert blind.details["floors"] == result.details["floors"]
    assert result.details["test_objects"] >= 20
    assert result.pictures["errors"]().width > 100
    with pytest.raises(ValueError, match="at least 8 objects"):
        measure_orientation(encoder, replace(data, limit=2), OPTIONS, OrientationSettings())
    with pytest.raises(
        ValueError, match=r"got . and . of kite \(mode object\): take more images, or further categories"
    ):
        measure_orientation(
            encoder, EvaluationData(size=32, limit=20, config_name="object"), OPTIONS, OrientationSettings()
        )
    with pytest.raises(
        ValueError, match="mode must be one of scene, topdown, object, or None for the data's, got 'side'"
    ):
        OrientationSettings(mode="side")
    with pytest.raises(ValueError, match="needs the angles of objects"):
        measure_orientation(encoder, EvaluationData(dataset="somewhere"), OPTIONS, OrientationSettings())
    assert SEMANTIC_CLASSES[-1] == "kite"


UPRIGHT = ("car", "house", "tree", "person", "boat", "animal")


@pytest.mark.slow
def test_turned_things_point_where_the_tokens_in_their_boxes_say(turned: Encoder) -> None:
    result = measure_quietly("orientation", turned, TurnedData(size=32, limit=150), categories=UPRIGHT)
    floors = {name: values["angular_error"] for name, values in result.details["floors"].items()}
    assert floors["mean_direction"] == pytest.approx(90, abs=12)
    assert 65 < floors["random_weights"] < 95
    assert result.metrics["angular_error"] < floors["random_weights"] - 10  # 48.5, 49.0 under 68.7
