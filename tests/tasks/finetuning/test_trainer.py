"""The Trainer: learning rates by layer, what is decayed, and what is frozen."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

from hf_geossl.tasks.finetuning.measuring import measure
from hf_geossl.training.checkpoints.checkpointer import Resumed


def test_layers_have_their_learning_rate_and_tokens_no_decay(make: Any) -> None:
    trainer = make("classification", layer_decay=0.5, learning_rate=1.0).trainer
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates["classifier.weight"] == (1.0, 0.05)
    assert rates["gtsa.encoder.layer.3.mlp.fc1.weight"] == (0.5, 0.05)
    assert rates["gtsa.encoder.layer.0.mlp.fc1.weight"] == (0.5**4, 0.05)
    assert rates["gtsa.embeddings.cls_token"] == (0.5**5, 0.0)
    assert rates["gtsa.embeddings.position_embeddings"] == (0.5**5, 0.0)
    assert rates["gtsa.layernorm.weight"] == (1.0, 0.0)
    assert rates.keys() == dict(trainer.model.named_parameters()).keys()


def test_a_frozen_trunk_stays_to_the_bit(make: Any) -> None:
    tuning = make("segmentation", train_layers="head", max_steps=2, learning_rate=0.1)
    before = {name: value.clone() for name, value in tuning.trainer.model.state_dict().items()}
    tuning.trainer.train()
    after = tuning.trainer.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_the_best_checkpoint_is_what_is_saved_and_a_run_can_stop_early(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(
        "hf_geossl.tasks.finetuning.trainer.measure",
        lambda *args, **kwargs: replace(measure(*args, **kwargs), loss=next(losses)),
    )
    given = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_steps": 1, "eval_steps": 1}
    tuning = make("classification", max_steps=9, **given)
    tuning.trainer.add_callback(EarlyStoppingCallback(1))
    tuning.run()
    state = tuning.trainer.state
    assert (state.best_global_step, state.best_metric, state.global_step) == (2, 1.0, 3)
    parts = ("", "checkpoint-2", "checkpoint-3")
    saved, best, last = (load_file(tuning.folder / part / "model.safetensors")["classifier.weight"] for part in parts)
    assert torch.equal(saved, best)
    assert not torch.equal(saved, last)
    again = make("classification", max_steps=3, **given).trainer  # a run that has ended gives its best weights again
    again.find_checkpoint = lambda requested: Resumed(tuning.folder / "checkpoint-3", [], state)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(again.model.classifier.weight, best)


def test_smoothed_labels_are_of_classes_of_images(make: Any) -> None:
    make("classification", label_smoothing_factor=0.1, max_steps=1).trainer.train()
    with pytest.raises(ValueError, match="label_smoothing_factor is of classification alone, got 0.1 for segmentation"):
        make("segmentation", label_smoothing_factor=0.1)


def test_batch_norms_of_one_pixel_take_more_than_one_image(make: Any) -> None:
    make("segmentation", decoder="upernet", per_device_train_batch_size=2, max_steps=1).trainer.train()
    with pytest.raises(
        ValueError, match="need two images at a time: give --per_device_train_batch_size 2, or --decoder linear"
    ):
        make("segmentation", decoder="upernet", per_device_train_batch_size=1)
    make("segmentation", per_device_train_batch_size=1)


def test_the_curve_is_measured_on_a_part_of_the_test_images(make: Any) -> None:
    tuning = make("classification", curve_images=3, eval_steps=2)
    tuning.trainer.train()
    measured = [entry for entry in tuning.trainer.state.log_history if "eval_accuracy" in entry]
    assert [(entry["step"], entry["eval_images"]) for entry in measured] == [(2, 3.0), (4, 3.0)]
    assert tuning.trainer.evaluate()["eval_images"] == 6.0
