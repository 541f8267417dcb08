"""GTSA's training: the teacher's momentum, losses that add up and fall, views that fit."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_geossl import GTSAForPreTraining, GTSATrainer
from tests.helpers.gtsa_run import make_trainer, small_arguments, small_config, small_views


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class Recorder(TrainerCallback):
    """Copies student and teacher after every optimizer step and before it."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []
        self.weight_decays: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.before.append(_state(model))

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.after.append(_state(model))
        self.weight_decays.append(optimizer.param_groups[0]["weight_decay"])


def test_teacher_moves_once_per_optimizer_step_under_accumulation(images: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path, images, [recorder], gradient_accumulation_steps=3, teacher_momentum=0.5, teacher_momentum_end=0.9
    )
    trainer.train()
    assert len(recorder.after) == 4
    for step, (before, after) in enumerate(zip(recorder.before, recorder.after, strict=True)):
        momentum = 0.9 + 0.5 * (0.5 - 0.9) * (1 + math.cos(math.pi * (step + 1) / 4))  # the next step's
        moved = 0
        for name, value in after.items():
            if name.startswith("teacher."):
                expected = momentum * before[name] + (1 - momentum) * after[name.removeprefix("teacher.")]
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
                moved += not torch.equal(value, before[name])
        assert moved == 0 if step == 0 else moved > 30  # warm-up starts at a learning rate of 0
        weight_decay = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / 4))
        assert recorder.weight_decays[step] == pytest.approx(weight_decay, rel=1e-12)


def test_logged_parts_add_up_to_the_logged_loss(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, images, max_steps=6, logging_steps=2, gradient_accumulation_steps=2, correspondence_start=3
    )
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "crop_loss" in entry]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line, weight in zip(lines, (0.0, 0.25, 0.5), strict=True):  # the second line holds one step of each kind
        if weight != 0.25:
            total = line["crop_loss"] + weight * line["correspondence_loss"] + 0.5 * line["rotation_loss"]
            assert line["loss"] == pytest.approx(total, abs=1e-5)
        assert line["skipped_images"] == 0
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait"] < 1
    assert lines[0]["learning_rate"] == 5e-2 * 8 / 256  # warm-up of one step: 0, then the peak; global batch 8


def test_losses_fall_and_features_keep_their_spread(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, images, max_steps=40, logging_steps=10, probe_every_steps=1, correspondence_start=1
    )
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "crop_loss" in entry]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert lines[-1]["feature_spread"] > 0.05
    assert lines[-1]["target_spread"] > 0.05


def test_views_that_the_patch_does_not_divide_are_refused(images: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="local_size of the views must be a multiple of the patch size 8, got 20"):
        GTSATrainer(
            GTSAForPreTraining(small_config()), small_arguments(tmp_path), images, views=small_views(local_size=20)
        )
