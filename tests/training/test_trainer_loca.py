"""LOCA's training: schedules, decay, metrics, evaluation, and what a run leaves."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, TrainerCallback

from hf_geossl import LOCAForPreTraining, LOCATrainer, LOCATrainingArguments
from hf_geossl.data.evaluation_batches import FirstImages
from hf_geossl.data.streams import load_stream
from hf_geossl.training.feed import EVALUATION, seed_at
from hf_geossl.training.schedules import linear_warmup_cosine
from hf_geossl.training.trainer_loca import LOCAPlan
from tests.helpers.exact_resume import different_weights, undisturbed_and_resumed
from tests.helpers.golden import golden_json
from tests.helpers.inputs import evaluation_inputs
from tests.helpers.loca_golden import to_flax
from tests.helpers.loca_run import make_trainer, small_arguments, small_config, small_views


@pytest.fixture
def images(smooth_images: Any) -> Any:
    return smooth_images


def _logged(trainer: LOCATrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def test_resume_after_kill_continues_bit_for_bit(tmp_path: Path) -> None:
    """With stochastic depth and tokens drawn from the global generator."""
    undisturbed, resumed = undisturbed_and_resumed(make_trainer, tmp_path, workers=0)
    assert different_weights(undisturbed.model, resumed.model) == []
    names = ("loss", "location_loss", "cluster_loss", "mean_entropy_loss", "location_accuracy", "grad_norm", "step")
    found, expected = ([tuple(line[name] for name in names) for line in _logged(t)] for t in (resumed, undisturbed))
    assert found == expected
    assert len(found) == 6


def test_schedules_are_the_authors() -> None:
    golden = golden_json("golden.json", "loca")["schedules_b16"]
    args = LOCATrainingArguments("unused", per_device_train_batch_size=1024, use_cpu=True)
    total, warmup = golden["total_steps"], args.get_warmup_steps(golden["total_steps"])
    assert warmup == 18765

    args.max_steps = total
    plan = LOCAPlan(args)
    assert args.base_learning_rate is not None
    peak = args.base_learning_rate * args.global_batch_size / 256
    for step, rate, momentum in zip(golden["steps"], golden["learning_rate"], golden["momentum"], strict=True):
        if step < total:  # the authors' would start again, and never get there
            assert peak * plan.lr_lambda(step, total, warmup, 0.01) == pytest.approx(rate, rel=2e-6)
            assert plan.teacher_momentum_at(step) == pytest.approx(momentum, rel=2e-7)
        else:
            assert plan.lr_lambda(step, total, warmup, 0.01) == pytest.approx(0.01)
    assert linear_warmup_cosine(0, 10, 0, 2.0, 0.0) == 2.0


def test_optimizer_follows_the_schedule_and_the_teacher_the_student(images: Any, tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []
    teachers: list[dict[str, torch.Tensor]] = []

    class Recorder(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            teachers.append({name: value.clone() for name, value in model.state_dict().items()})

    trainer = make_trainer(tmp_path, images, [Recorder()], max_steps=10, warmup_steps=4, teacher_momentum=0.5)
    trainer.train()
    peak = 5e-2 * 4 / 256
    shares = [
        min(step / 4, 1) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * max(step - 4, 0) / 6))) for step in range(10)
    ]
    assert [rate for rate, _ in seen] == pytest.approx([peak * share for share in shares], rel=1e-9)
    assert {decay for _, decay in seen} == {0.1}
    for step, (before, after) in enumerate(itertools.pairwise(teachers), start=1):
        momentum = 1 + 0.5 * (0.5 - 1) * (1 + math.cos(math.pi * step / 10))  # of the step itself
        for name, value in after.items():
            if name.startswith("teacher."):
                student = after[name.removeprefix("teacher.")]
                torch.testing.assert_close(
                    value, momentum * before[name] + (1 - momentum) * student, rtol=1e-5, atol=1e-6
                )


def test_decayed_parameters_are_the_authors(images: Any, tmp_path: Path) -> None:
    """Queries', keys' and values' biases are decayed too, unless turned off."""
    golden = golden_json("golden.json", "loca")["weight_decay_mask"]
    trainer = make_trainer(tmp_path, images)
    names = set(trainer.get_decay_parameter_names(trainer.model))
    assert not any(name.startswith("teacher.") for name in names)
    trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    marked = {name: torch.full_like(value, float(name in names)) for name, value in trained.items()}
    flat = to_flax(marked)
    assert flat.keys() == golden.keys()
    assert {name: bool(value.flatten()[0]) for name, value in flat.items()} == golden
    optimizer = trainer.create_optimizer()
    assert sum(len(group["params"]) for group in optimizer.param_groups if group["decayed"]) == len(names)
    without = make_trainer(tmp_path, images, decay_attention_biases=False)
    left_out = names - set(without.get_decay_parameter_names(without.model))
    assert len(left_out) == 4  # two layers, and queries and key-values of the cross-attention
    assert all(name.endswith((".qkv.bias", ".query.bias", ".key_value.bias")) for name in left_out)


def test_positions_are_learned_and_nothing_collapses(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, images, max_steps=100, logging_steps=20, probe_every_steps=5, per_device_train_batch_size=8
    )
    trainer.train()
    first, last = _logged(trainer)[0], _logged(trainer)[-1]
    assert last["location_loss"] < first["location_loss"] - 0.3
    assert last["cluster_loss"] < first["cluster_loss"]
    assert last["location_accuracy"] > max(first["location_accuracy"], 1.25 / 16)  # chance is 1 / 16
    assert last["feature_spread"] > 0.05
    assert last["target_spread"] > 0.05
    total = last["location_loss"] + last["cluster_loss"] + last["mean_entropy_loss"]
    assert last["loss"] == pytest.approx(total, abs=1e-5)
    assert last["feature_loss"] == pytest.approx(last["cluster_loss"] + last["mean_entropy_loss"], abs=1e-5)


def test_measuring_does_not_change_the_run(images: Any, tmp_path: Path) -> None:
    """Evaluation, probes and pictures leave the generators that training draws from as they are."""
    quiet = make_trainer(tmp_path / "quiet", images, max_steps=6, probe_every_steps=0)
    quiet.train()
    watched = make_trainer(
        tmp_path / "watched",
        images,
        max_steps=6,
        probe_every_steps=1,
        picture=True,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=images[:9],
    )
    watched.train()
    assert different_weights(quiet.model, watched.model) == []
    measured = [entry for entry in watched.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in measured] == [2, 4, 6]
    parts = measured[0]["eval_location_loss"] + measured[0]["eval_cluster_loss"] + measured[0]["eval_mean_entropy_loss"]
    assert measured[0]["eval_loss"] == pytest.approx(parts, abs=1e-5)
    assert measured[0]["eval_images"] == 9
    again = watched.evaluate()
    assert {
        name: again[name] for name in measured[2] if name in again and "second" not in name and "time" not in name
    } == {
        name: value
        for name, value in measured[2].items()
        if name in again and "second" not in name and "time" not in name
    }
    assert 0 <= again["eval_location_accuracy"] <= 1


def test_evaluation_is_the_mean_over_images_with_fixed_tokens(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, per_device_eval_batch_size=10)
    measured = trainer.evaluate(images)
    torch.manual_seed(99)
    assert trainer.evaluate(images)["eval_location_loss"] == measured["eval_location_loss"]
    losses, accuracies, counts = [], [], []
    for batch in trainer.get_eval_dataloader(images):
        counts.append(len(batch["crop_boxes"]))
        number = batch["evaluation_batch"]
        torch.manual_seed(seed_at(trainer.args.seed, 0, EVALUATION, number))
        with torch.no_grad():
            outputs = trainer.model.eval()(**evaluation_inputs(trainer, batch))
        losses.append(outputs.loss.item())
        accuracies.append(outputs.location_accuracy.item())
    assert counts == [10, 10, 4]
    loss, accuracy = (np.average(values, weights=counts) for values in (losses, accuracies))
    assert measured["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert measured["eval_location_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_first_images_bound_an_evaluation(tmp_path: Path) -> None:
    stream = load_stream("scenes", "validation", config_name="scene-48")
    held_out = FirstImages(stream, 5)
    trainer = make_trainer(tmp_path, "scenes", eval_dataset=held_out, per_device_eval_batch_size=2)
    assert [len(batch["crop_boxes"]) for batch in trainer.get_eval_dataloader()] == [2, 2, 1]
    measured = trainer.evaluate()
    assert measured["eval_images"] == 5
    line = trainer.describe_evaluation(measured)
    accuracy = 100 * measured["eval_location_accuracy"]
    assert line == f"position accuracy on 5 held-out images of scenes (validation): {accuracy:.1f} %, chance 6.2 %"
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        FirstImages(stream, 0)


@pytest.mark.parametrize("fields", [{"use_cluster_loss": False}, {"location_target": "self"}])
def test_ablations_train_and_log_what_they_have(fields: dict[str, Any], images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, config=fields, logging_steps=1, probe_every_steps=1, picture=True)
    trainer.train()
    line = _logged(trainer)[-1]
    assert line["loss"] == pytest.approx(line["location_loss"], abs=1e-6)
    assert "cluster_loss" not in line
    assert "target_spread" not in line
    assert trainer.chance_losses() == {"location_loss": math.log(16), "location_accuracy": 1 / 16}
    trainer.save_model()
    assert (
        "use cluster loss | False" in (tmp_path / "README.md").read_text()
        or "target | self" in (tmp_path / "README.md").read_text()
    )
    assert (tmp_path / "positions.png").is_file()


def test_collapsed_teacher_has_no_spread(images: Any, tmp_path: Path) -> None:
    still = {"teacher_momentum": 1.0, "teacher_momentum_end": 1.0}
    trainer = make_trainer(tmp_path, images, max_steps=1, logging_steps=1, probe_every_steps=1, **still)
    with torch.no_grad():
        trainer.model.teacher.loca.layernorm.weight.zero_()
        trainer.model.teacher.loca.layernorm.bias.fill_(1.0)
    trainer.train()
    assert trainer.state.log_history[0]["feature_spread"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.state.log_history[0]["target_spread"] == pytest.approx(0.0, abs=1e-6)


def test_views_that_do_not_fit_the_model_are_refused(images: Any, tmp_path: Path) -> None:
    for views, message in (
        (small_views(reference_size=48), "reference_size of the views must be the model's image_size 32, got 48"),
        (small_views(patch_size=16), "patch_size of the views must be the model's, 8, got 16"),
    ):
        with pytest.raises(ValueError, match=message):
            LOCATrainer(LOCAForPreTraining(small_config()), small_arguments(tmp_path), images, views=views)


def test_run_leaves_model_card_and_pictures(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, images, max_steps=6, logging_steps=2, save_steps=3, teacher_momentum=0.5, picture=True,
        eval_dataset=images[:8],
    )  # fmt: skip
    trainer.train()
    measured = trainer.evaluate()
    trainer.save_model()
    pixels = torch.randn(2, 3, 40, 24)
    features = AutoModel.from_pretrained(tmp_path)(pixels).last_hidden_state
    assert features.shape == (2, 15, 32)
    assert torch.equal(features, trainer.model.teacher.loca.eval()(pixels).last_hidden_state)
    card, last = (tmp_path / "README.md").read_text(), _logged(trainer)[-1]
    for fact in (
        "by finding where a small piece of an image belongs",
        "`(batch, patches, 32)`, the patches in raster order without a class token",
        "| weight decay | 0.1 |",
        "| teacher momentum | 0.5 to 1 |",
        "| num prototypes | 16 |",
        f"| {last['mean_entropy_loss']:.4f} | {last['location_accuracy']:.4f} |",
        "On 8 images of",
        f"| location accuracy | {measured['eval_location_accuracy']:.4f} (chance level: 0.0625) |",
        f"| cluster loss | {measured['eval_cluster_loss']:.4f} (chance level: {math.log(16):.4f}) |",
        f"| mean entropy loss | {measured['eval_mean_entropy_loss']:.4f} |",
        "(positions.png)",
    ):
        assert fact in card
    assert "class token first" not in card
    drawn = (tmp_path / "positions.png").read_bytes()
    (tmp_path / "positions.png").unlink()
    resumed = make_trainer(
        tmp_path, images, max_steps=6, save_steps=3, teacher_momentum=0.5, picture=True, logging_steps=2
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    resumed.save_model()
    assert (tmp_path / "positions.png").read_bytes() == drawn  # of the same held-out crops
    assert "Measured on held-out" not in json.dumps(resumed.state.log_history)
