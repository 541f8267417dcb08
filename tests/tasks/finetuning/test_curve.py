"""The learning curve has what was logged, and the floors."""

import numpy as np

from hf_geossl.tasks.finetuning.curve import draw_curve
from hf_geossl.tasks.finetuning.kinds import find_task
from hf_geossl.training.pictures.learning_curve import HEIGHT, SCALE, WIDTH

HISTORY = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5, "eval_mean_iou": 0.25}]


def test_the_curve_has_a_panel_a_number_and_its_floors() -> None:
    task = find_task("segmentation")
    plain = draw_curve(HISTORY, task, {})
    assert plain.size == (3 * WIDTH * SCALE, (HEIGHT + 20) * SCALE)
    floors = {"details": {"floors": {"mean_iou": {"constant": 0.1, "random_weights": 0.2}}}}
    pictures = [np.asarray(picture).astype(int) for picture in (plain, draw_curve(HISTORY, task, floors))]
    changed = np.abs(pictures[0] - pictures[1]).sum(axis=(0, 2)) > 0
    assert not changed[WIDTH * SCALE : 2 * WIDTH * SCALE - 60].any() or changed[2 * WIDTH * SCALE :].any()
    assert changed[2 * WIDTH * SCALE :].any()
    without = draw_curve(HISTORY[:2], task, {})  # boxes have no loss to be measured
    assert without.size == (WIDTH * SCALE, (HEIGHT + 20) * SCALE)
