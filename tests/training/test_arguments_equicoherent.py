"""EquiCoherent's training arguments: ranges, and the learning rate for a batch."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from hf_geossl import (
    EquiCoherentForPreTraining,
    EquiCoherentTrainer,
    EquiCoherentTrainingArguments,
)
from tests.helpers.equicoherent_run import small_arguments, small_config, small_views


@pytest.fixture
def images(smooth_images: Any) -> Any:
    return smooth_images


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 5e-4 * 24 / 256),
        ({"base_learning_rate": 1e-2}, 1e-2 * 24 / 256),
        ({"base_learning_rate": 4e-3, "learning_rate_scaling": "sqrt"}, 4e-3 * math.sqrt(24 / 1024)),
        ({"learning_rate": 0.01, "learning_rate_scaling": "sqrt"}, 0.01),
    ],
)
def test_learning_rate_scales_with_the_batch(
    fields: dict[str, Any], expected: float, images: Any, tmp_path: Path
) -> None:
    args = EquiCoherentTrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=6, use_cpu=True, **fields
    )
    config = small_config()
    trainer = EquiCoherentTrainer(EquiCoherentForPreTraining(config), args, images, views=small_views(config))
    assert trainer.args.learning_rate == pytest.approx(expected, rel=1e-12)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {trainer.args.learning_rate}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate_scaling": "root"}, "learning_rate_scaling must be 'linear' or 'sqrt', got 'root'"),
        ({"teacher_temperature_start": 0.0}, "teacher_temperature_start must be above 0, got 0.0"),
        ({"teacher_temperature_warmup": -1.0}, "teacher_temperature_warmup must be 0 or more, got -1.0"),
        ({"freeze_last_layer": math.nan}, "freeze_last_layer must be 0 or more, got nan"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1, got 0.0"),
        ({"layer_decay": 1.1}, "layer_decay must be above 0 and at most 1, got 1.1"),
        ({"patch_embed_learning_rate": 2.0}, "patch_embed_learning_rate must be above 0 and at most 1, got 2.0"),
    ],
)
def test_arguments_out_of_range_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small_arguments(tmp_path, **fields)
