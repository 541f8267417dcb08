"""LOCA's training arguments."""

from pathlib import Path
from typing import Any

import pytest

from hf_geossl import LOCAForPreTraining, LOCATrainer, LOCATrainingArguments
from tests.helpers.loca_run import small_arguments, small_config, small_views


@pytest.fixture
def images(smooth_images: Any) -> Any:
    return smooth_images


def test_learning_rate_given_alone_is_taken_as_it_is(images: Any, tmp_path: Path) -> None:
    for given, expected in (
        ({}, 2.5e-4 * 4 / 256),
        ({"learning_rate": 0.01}, 0.01),
        ({"base_learning_rate": 0.1}, 0.1 / 64),
    ):
        args = LOCATrainingArguments(str(tmp_path), max_steps=1, per_device_train_batch_size=4, use_cpu=True, **given)
        trainer = LOCATrainer(LOCAForPreTraining(small_config()), args, images, views=small_views())
        assert trainer.args.learning_rate == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="were both given"):
        small_arguments(tmp_path, learning_rate=0.01)
