"""The position head in the demo, beside the pretraining model."""

import math
from pathlib import Path
from typing import Any

import pytest

from hf_geossl.demo import heads_loca as heads
from hf_geossl.demo.loading import DemoModel
from hf_geossl.demo.pictures import read_upload
from tests.helpers.demo_models import FORMATS, encoded, model_of, noise, normalized, pixels


def test_box_is_placed_as_predict_positions_says(opened: dict[str, DemoModel]) -> None:
    model, picture = opened["loca"], noise(5)
    placed = heads.place_box(model, picture, (0.75, 0.25, 0.25, 0.75))  # drawn from the right to the left
    assert (placed.box, placed.side, placed.grid) == ((8, 8, 24, 24), 2, 4)
    assert placed.true == [5, 6, 9, 10]
    query = picture.crop((8, 8, 24, 24))  # 16 pixels: two patches of 8, nothing resampled
    scores = model.whole.predict_positions(pixels(picture), pixels(query))
    assert placed.predicted == scores[0].argmax(-1).tolist()
    right = sum(a == b for a, b in zip(placed.true, placed.predicted, strict=True))
    assert placed.exact == right / 4
    large = heads.place_box(model, picture, (0, 0, 1, 1))
    assert (large.side, large.true) == (4, list(range(16)))
    scores = model.whole.predict_positions(pixels(picture), pixels(picture))
    assert large.predicted == scores[0].argmax(-1).tolist()


@pytest.mark.parametrize("kind", FORMATS)
def test_boxes_of_other_images_are_cut_out_of_all_channels(kind: str, tmp_path: Path) -> None:
    model = model_of("loca", kind, tmp_path)
    placed = heads.place_box(model, read_upload(encoded(kind), FORMATS[kind]), (0.25, 0.5, 0.75, 1))
    whole = normalized(kind)
    scores = model.whole.predict_positions(whole, whole[..., 16:32, 8:24].contiguous())
    assert (placed.box, placed.predicted) == ((8, 16, 24, 32), scores[0].argmax(-1).tolist())


def test_placement_tells_how_far_off_it_is() -> None:
    placed = heads.Placement((0, 0, 16, 16), 2, [0, 1, 4, 5], [5, 6, 9, 10], 4)
    assert placed.exact == 0
    assert placed.distance == pytest.approx(math.sqrt(2))
    assert placed.guessed_distance == pytest.approx(2.0080, abs=1e-3)
    assert placed.predicted_box == (1, 1, 3, 3)
    assert heads.Placement((0, 0, 1, 1), 2, [0, 1, 4, 5], [0, 1, 4, 6], 4).exact == 0.75


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.1, 0.2, 0.5, 0.6), (10, 20, 50, 60)),
        ((-3.0, 0.9, 0.5, 7.0), (0, 90, 50, 100)),
        ((0.99, 0.99, 0.99, 0.99), (92, 92, 100, 100)),  # a click is a smallest box
        ((0.0, 0.0, 0.0, 0.5), (0, 0, 8, 50)),
    ],
)
def test_drawn_boxes_lie_inside_and_are_not_empty(box: Any, expected: tuple[int, ...]) -> None:
    assert heads.whole_box(box, 100, 8) == expected
