"""Presets of the desk-scale experiment, and their learning settings."""

import pytest

from benchmarks.scenes_experiment.presets import PRESETS, RECIPES, read_settings


def test_settings_of_one_objective_leave_the_others_and_the_table_alone() -> None:
    changed = PRESETS["gpu"].changed(
        read_settings(["steps=7", "training.learning_rate=5e-4", "ibot.model.center_momentum=0.99"])
    )
    assert (changed.steps, changed.training["learning_rate"]) == (7, 5e-4)
    assert changed.of_objective("ibot", "model")["center_momentum"] == 0.99
    assert changed.recipes["dino"] == RECIPES["dino"]
    assert "center_momentum" not in RECIPES["ibot"]["model"]
    assert (
        changed.of_objective("ibot", "model")["teacher_temperature"] == RECIPES["ibot"]["model"]["teacher_temperature"]
    )
    assert PRESETS["gpu"].training["learning_rate"] == 1e-3


@pytest.mark.parametrize("word", ["lr=1", "dyno.training.learning_rate=1", "dino.trainning.learning_rate=1", "steps"])
def test_a_setting_that_does_not_exist_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="setting"):
        PRESETS["tiny"].changed(read_settings([word]))


def test_the_long_preset_is_that_of_the_specification() -> None:
    long = PRESETS["gpu_long"]
    assert (long.image_size, long.batch_size, long.steps, long.prototypes) == (96, 512, 3000, 2048)
