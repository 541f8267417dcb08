"""GTSA's training arguments."""

from pathlib import Path

import pytest

from hf_geossl import GTSAForPreTraining, GTSATrainer, GTSATrainingArguments
from tests.helpers.gtsa_run import small_config, small_views


def _trainer(folder: Path, images: object, **weights: float) -> GTSATrainer:
    args = GTSATrainingArguments(str(folder), max_steps=100, use_cpu=True, picture=False, **weights)
    return GTSATrainer(GTSAForPreTraining(small_config()), args, images, views=small_views())


def test_defaults_are_the_authors_recipe(tmp_path: Path) -> None:
    args = GTSATrainingArguments(str(tmp_path), use_cpu=True)
    # the authors' `gtsa_small`: learning rate 5e-4 for 256 images, weight decay .04 to .4, momentum .996 to 1, clip 3
    found = (args.base_learning_rate, args.weight_decay, args.weight_decay_end, args.teacher_momentum)
    assert found == (5e-4, 0.04, 0.4, 0.996)
    assert (args.teacher_momentum_end, args.max_grad_norm, args.clip_mode) == (1.0, 3.0, "tensor")


def test_given_weights_replace_the_models_and_others_stay(smooth_images: object, tmp_path: Path) -> None:
    config = _trainer(tmp_path, smooth_images, rotation_weight=0.25).model.config
    assert (config.rotation_weight, config.correspondence_weight) == (0.25, 0.5)


def test_correspondence_counts_from_a_share_or_a_number_of_steps(smooth_images: object, tmp_path: Path) -> None:
    for start, first in ((0.11, 11), (0.0, 0), (30, 30)):
        trainer = _trainer(tmp_path, smooth_images, correspondence_start=start)
        trainer.state.max_steps = 100
        weights = [trainer.model_arguments(step)["correspondence_weight"] for step in range(100)]
        assert weights == [0.0] * first + [0.5] * (100 - first)
    with pytest.raises(ValueError, match="correspondence_start must be 0 or more, got -1"):
        GTSATrainingArguments(str(tmp_path), correspondence_start=-1, use_cpu=True)
