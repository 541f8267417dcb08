"""The instruments of a run: they change nothing of it, go on after a resume, and choose the best checkpoint."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback

from hf_geossl.training.monitors.alarms import LITTLE_CONTRAST
from hf_geossl.training.monitors.instruments import LabelledImages
from tests.helpers.exact_resume import different_weights
from tests.helpers.gtsa_run import make_trainer

MEASURED = (
    "quarter_turn_accuracy",
    "position_accuracy",
    "correspondence_accuracy",
    "rankme",
    "lidar",
    "feature_spread",
)


class Made:
    """Labelled images of two colours."""

    def seconds(self, count: int, size: int) -> float:
        return 0.0

    def load(self, count: int, size: int) -> LabelledImages:
        images = torch.randint(0, 100, (2 * count, 3, size, size), generator=torch.Generator().manual_seed(0))
        labels = torch.arange(2 * count) % 2
        images += 100 * labels[:, None, None, None]
        images = images.to(torch.uint8)
        return LabelledImages("made", images[:count], labels[:count], images[count:], labels[count:], 2)


def _measurements(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "rankme" in entry]


def test_a_run_with_probes_has_the_same_weights_and_resumes_exactly(images: Any, tmp_path: Path) -> None:
    """Also from the middle of an interval, and the curve has every step once."""
    fields = {"max_steps": 6, "logging_steps": 4, "save_steps": 3, "probe_images": 8}
    quiet = make_trainer(tmp_path / "quiet", images, probe_every_steps=0, **fields)
    quiet.train()
    torch.manual_seed(7)
    watched = make_trainer(tmp_path / "watched", images, probe_dataset=Made(), probe_every_steps=2, **fields)
    watched.train()
    assert different_weights(quiet.model, watched.model) == []
    assert [line["step"] for line in _measurements(watched)] == [2, 4, 6]
    assert _measurements(watched)[0]["knn_accuracy"] > 0.8
    resumed = make_trainer(tmp_path / "watched", images, probe_dataset=Made(), probe_every_steps=2, **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "watched/checkpoint-3"))
    assert different_weights(quiet.model, resumed.model) == []
    ours, theirs = (
        [{name: line[name] for name in ("step", "knn_accuracy", *MEASURED)} for line in _measurements(trainer)]
        for trainer in (watched, resumed)
    )
    assert ours == theirs


def test_crops_and_floors_are_kept_for_a_resume(images: Any, tmp_path: Path) -> None:
    fields = {"max_steps": 4, "save_steps": 2, "probe_every_steps": 2, "probe_images": 6}
    whole = make_trainer(tmp_path, images, **fields)
    whole.train()
    floors = whole.parts.probes.floors
    assert set(floors["rankme"]) == {"random weights", "thumbnail"}
    assert floors["quarter_turn_accuracy"]["chance"] == 0.25
    file = tmp_path / ".features/floors.json"
    stored = json.loads(file.read_text())
    stored["floors"]["rankme"]["thumbnail"] = 123.0
    file.write_text(json.dumps(stored))
    resumed = make_trainer(tmp_path, images, **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.parts.probes.floors["rankme"]["thumbnail"] == 123.0  # read, not measured
    assert _measurements(resumed)[-1]["rankme"] == _measurements(whole)[-1]["rankme"]


def test_a_measurement_is_of_the_teacher(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=1, logging_steps=1, probe_every_steps=1)
    with torch.no_grad():
        trainer.model.teacher.gtsa.layernorm.weight.zero_()
        trainer.model.teacher.gtsa.layernorm.bias.fill_(1.0)
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["feature_spread"] == pytest.approx(0.0, abs=1e-6)
    assert line["rankme"] == pytest.approx(1.0, abs=1e-3)
    assert line["target_spread"] < 0.5  # differs only by the position in the map


def test_short_runs_are_not_measured_and_say_so(images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(
            tmp_path, images, probe_every_steps=2, probe_time_share=1e-5, probe_dataset=Made(), probe_images=8
        )
        trainer.train()
    assert _measurements(trainer) == []
    assert "features are not measured while this run trains" in caplog.text
    assert "Train longer, lower probe_images, or raise probe_time_share" in caplog.text


def test_instruments_choose_the_best_checkpoint_and_stop_early(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, images, [EarlyStoppingCallback(2)], probe_dataset=Made(), probe_images=8, max_steps=12,
        eval_strategy="steps", eval_steps=2, save_steps=2, eval_dataset=images[:4], load_best_model_at_end=True,
        metric_for_best_model="knn_accuracy", probe_every_steps=0, save_total_limit=20,
    )  # fmt: skip
    trainer.train()
    measured = [entry["eval_knn_accuracy"] for entry in trainer.state.log_history if "eval_knn_accuracy" in entry]
    assert trainer.state.best_metric == max(measured)
    best = 2 * (measured.index(max(measured)) + 1)
    assert trainer.state.best_global_step == best
    assert trainer.state.global_step == best + 4  # two evaluations that are no better
    assert trainer.weights_step == best


def test_what_cannot_choose_a_checkpoint_is_refused_with_the_names(images: Any, tmp_path: Path) -> None:
    fields = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": images[:4], "load_best_model_at_end": True}
    fields |= {"save_steps": 1, "probe_images": 8}
    with pytest.raises(ValueError, match=r"must be one of loss, .*rankme, lidar.*got 'accuracy'"):
        make_trainer(tmp_path / "unknown", images, metric_for_best_model="accuracy", **fields).train()
    with pytest.raises(ValueError, match="need a probe_dataset.*got 'knn_accuracy'"):
        make_trainer(tmp_path / "unlabelled", images, metric_for_best_model="knn_accuracy", **fields).train()


def test_images_of_the_run_choose_a_checkpoint_once_there_are_any(images: Any, tmp_path: Path) -> None:
    fields = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": images[:4], "load_best_model_at_end": True}
    fields |= {"save_steps": 1, "max_steps": 1, "probe_images": 8, "metric_for_best_model": "eval_rankme"}
    trainer = make_trainer(tmp_path / "run", images, **fields)
    trainer.train()
    assert trainer.state.best_metric > 1
    with pytest.raises(
        ValueError, match="before its first step there are none: give a probe_dataset, or leave eval_on_"
    ):
        make_trainer(tmp_path / "start", images, eval_on_start=True, **fields).train()


@pytest.mark.parametrize("share", [1, 1 / 30])
def test_probes_measure_the_contrast_inside_views(share: float, images: Any, tmp_path: Path) -> None:
    """In deviations of the normalisation, ImageNet's here, which is that of no single image."""
    grey = [{"image": (128 + (row["image"].astype(float) - 128) * share).astype("uint8")} for row in images]
    trainer = make_trainer(tmp_path, grey, max_steps=1, logging_steps=1, probe_every_steps=1)
    trainer.train()
    deviations = [(row["image"] / 255 / 0.225).std(axis=(0, 1)).mean() for row in grey]
    measured = trainer.parts.probes.contrast
    assert 0.3 < measured / (sum(deviations) / len(deviations)) < 2
    assert (measured < LITTLE_CONTRAST) == (share < 1)
