"""Presets of the desk-scale experiment, and their learning settings."""

import pytest

from benchmarks.scenes_experiment.presets import PRESETS, RECIPES, read_settings
from benchmarks.scenes_experiment.rule import CLAIMS
from benchmarks.scenes_experiment.runs import tasks_of


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


class Every(dict[str, float]):
    """A probe's results, in which every metric is."""

    def get(self, name: str, default: object = None) -> float:  # type: ignore[override]
        return 1.0


def test_what_one_core_leaves_out_is_read_by_no_claim() -> None:
    desk = PRESETS["desk"]
    unread = {
        claim.what
        for claim in CLAIMS
        for arm in claim.arms
        if claim.measure({task: Every() for task in tasks_of(arm, desk)}) is None
    }
    assert not unread
    assert all({"knn", "segmentation"} <= set(tasks_of(arm, desk)) for claim in CLAIMS for arm in claim.arms)
    assert "equivariance" not in tasks_of("gtsa", desk)
    assert "equivariance" in tasks_of("gtsa", PRESETS["gpu"])
