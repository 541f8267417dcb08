"""The learning curve: which panels there are, where their points lie, and that a run draws it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_geossl.training.pictures import learning_curve
from hf_geossl.training.pictures.learning_curve import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    SCALE,
    TOP,
    WIDTH,
    Panel,
    draw_curves,
    panels,
)
from tests.helpers.gtsa_run import make_trainer

HISTORY = [
    {"step": 10, "loss": 3.0, "teacher_entropy": 4.0},
    {"step": 20, "loss": 2.0, "teacher_entropy": 3.0, "rankme": 5.0, "knn_accuracy": 0.25, "target_spread": 0.5},
    {"step": 30, "loss": 1.0, "rankme": 7.0, "knn_accuracy": 0.5},
    {"step": 30, "train_runtime": 1.0, "train_loss": 2.0},
]


def test_panels_are_of_what_was_measured_and_of_every_loss() -> None:
    shown = panels(HISTORY, {"knn_accuracy": {"chance": 0.125}})
    assert [(panel.title, panel.points) for panel in shown] == [
        ("k-NN", [(20, 0.25), (30, 0.5)]),
        ("RankMe", [(20, 5.0), (30, 7.0)]),
        ("teacher entropy", [(20, 3.0)]),
        ("loss", [(10, 3.0), (20, 2.0), (30, 1.0)]),
    ]
    assert shown[0].floors == {"chance": 0.125}
    assert shown[0].written(0.5) == "50 %"


def test_points_and_floors_lie_where_their_values_are() -> None:
    """The curve from the left below to the right above, the floor dashed in its own colour between them."""
    picture = np.asarray(draw_curves([Panel("made", [(0, 0.0), (100, 10.0)], {"chance": 5.0})])).astype(int)
    colours = {name: tuple(int(value[i : i + 2], 16) for i in (1, 3, 5)) for name, value in (("curve", learning_curve.CURVE), ("chance", learning_curve.FLOORS["chance"]))}  # fmt: skip
    axes = picture[: (HEIGHT - BOTTOM) * SCALE]
    rows, columns = np.nonzero((axes == colours["curve"]).all(axis=2) & (np.arange(len(axes)) > TOP * SCALE)[:, None])
    assert abs(columns.min() - (LEFT - 2) * SCALE) <= 2
    assert abs(columns.max() - (WIDTH - RIGHT + 2) * SCALE) <= 2
    assert rows[columns < (LEFT + 10) * SCALE].min() > rows[columns > (WIDTH - RIGHT - 10) * SCALE].max()
    floor = (TOP + HEIGHT - BOTTOM) / 2 * SCALE
    rows, columns = np.nonzero((axes == colours["chance"]).all(axis=2))
    dashes = np.unique(columns[np.abs(rows - floor) <= SCALE])
    assert 0.3 < len(dashes) / ((WIDTH - LEFT - RIGHT) * SCALE) < 0.8


@pytest.mark.parametrize("low", [-3.0, 0.0, 1e-4, 17.0])
def test_values_that_are_all_the_same_can_be_drawn(low: float) -> None:
    assert draw_curves([Panel("flat", [(5, low)], {})]).size == (WIDTH * SCALE, (HEIGHT + 20) * SCALE)


def test_a_run_draws_it_and_its_card_shows_it(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=2, probe_every_steps=1, probe_images=4, picture=True)
    trainer.train()
    with Image.open(tmp_path / "learning_curve.png") as picture:
        assert picture.width == 5 * WIDTH * SCALE
    trainer.save_model()
    assert "![Learning curve](learning_curve.png)" in (tmp_path / "README.md").read_text()
