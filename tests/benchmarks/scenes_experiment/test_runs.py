"""One arm: what is made of it at the sizes of a preset, and a tiny one from pretraining to its line of results."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scenes_experiment import runs
from benchmarks.scenes_experiment.arms import ARMS, WEIGHT_ARMS
from benchmarks.scenes_experiment.presets import PRESETS, Preset
from benchmarks.scenes_experiment.rendering import RenderedScenes, render_scenes

TINY = replace(PRESETS["tiny"], reconstruction_weight=1.0)


def test_settings_that_an_arm_depends_on() -> None:
    changed = TINY.changed({"ibot.training.learning_rate": 1e-5, "reconstruction_weight": 5.0})

    def same(arm: str, other: Preset, **options: bool) -> bool:
        return runs.settings_digest(arm, 0, TINY, **options) == runs.settings_digest(arm, 0, other, **options)

    assert same("gtsa", changed)
    assert not same("ibot", changed)
    assert not same("vicreg_equicoherent", changed)  # by its weight
    assert same("random", replace(changed, steps=9))
    probes = replace(TINY, tasks={"knn": {}})
    assert not same("random", probes)
    assert same("random", probes, probes=False)


@pytest.mark.parametrize("name", [*ARMS, *WEIGHT_ARMS])
def test_parts_of_every_arm_fit_each_other(name: str) -> None:
    arm = runs.arm_named(name)
    parts = arm.make(TINY.changed({f"{arm.objective}.views.brightness": 0.125}))
    parts.trainer.check_views(parts.trainer.__new__(parts.trainer), parts.model, parts.views)
    assert parts.views.brightness == 0.125
    if "@" in name:
        assert parts.model.config.reconstruction_weight == float(name.partition("@")[2])


def test_an_arm_goes_on_from_its_weights_and_comes_to_the_same_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = replace(TINY, tasks={"knn": {}}, probe_images=16, bootstrap=0)
    images = RenderedScenes(render_scenes(tmp_path / "scenes", "scene", 40, preset.train_images))
    line = runs.run_arm("loca_cluster", 0, preset, images, tmp_path)
    assert 0 <= line["tasks"]["knn"]["accuracy"] <= 1
    assert "thumbnail" in line["tasks"]["knn"]["details"]["floors"]["accuracy"]
    assert len(line["training"]["prediction_diversity"]) == 2
    assert len(line["training"]["loss"]) == 2
    monkeypatch.setattr(runs, "pretrain", None)
    again = runs.run_arm("loca_cluster", 0, preset, images, tmp_path)
    timed = ("seconds", "date")
    assert {key: again[key] for key in again if key not in timed} == {
        key: line[key] for key in line if key not in timed
    }
