"""The Trainer: learning rates by layer, what is decayed, and what is frozen."""

from typing import Any

import torch


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


def test_the_curve_is_measured_on_a_part_of_the_test_images(make: Any) -> None:
    tuning = make("classification", curve_images=3, eval_steps=2)
    tuning.trainer.train()
    measured = [entry for entry in tuning.trainer.state.log_history if "eval_accuracy" in entry]
    assert [(entry["step"], entry["eval_images"]) for entry in measured] == [(2, 3.0), (4, 3.0)]
    assert tuning.trainer.evaluate()["eval_images"] == 6.0
