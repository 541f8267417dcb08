"""Training: the teacher, schedules, clipping, logs, alarms, checkpoints and what a run leaves."""

import itertools
import json
import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, TrainerCallback, set_seed

from hf_geossl import EquiCoherentTrainer, GTSAForPreTraining, GTSATrainer, LOCATrainer
from hf_geossl.training import trainer as trainer_module
from hf_geossl.training.checkpoints.files import CheckpointError, newest_whole_checkpoint
from hf_geossl.training.monitors.collapse import STUCK_LOGS, CollapseCallback
from hf_geossl.training.trainer import NonFiniteLossError
from tests.helpers.exact_resume import different_weights, undisturbed_and_resumed
from tests.helpers.gtsa_run import make_trainer, small_arguments, small_config, small_views
from tests.helpers.held_out import evaluation_inputs


@pytest.fixture(scope="module")
def images() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"image": generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)} for _ in range(24)]


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _losses(trainer: GTSATrainer) -> list[tuple[Any, ...]]:
    names = ("step", "loss", "crop_loss", "correspondence_loss", "rotation_loss", "grad_norm", "learning_rate", "epoch")
    return [tuple(entry[name] for name in names) for entry in trainer.state.log_history if "crop_loss" in entry]


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


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_after_kill_continues_bit_for_bit(workers: int, tmp_path: Path) -> None:
    undisturbed, resumed = undisturbed_and_resumed(make_trainer, tmp_path, workers)
    assert different_weights(undisturbed.model, resumed.model) == []
    assert _losses(resumed) == _losses(undisturbed)
    assert [entry[0] for entry in _losses(resumed)] == [3, 6, 9, 12, 15, 18]


def test_same_seed_same_weights_and_other_seed_others(images: Any, tmp_path: Path) -> None:
    results = []
    for index, seed in enumerate((1, 1, 2)):
        trainer = make_trainer(tmp_path / str(index), images, seed=seed)
        trainer.train()
        results.append(torch.cat([p.flatten() for p in trainer.model.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


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


def test_teacher_stays_where_the_gradient_scaler_skips_the_step(images: Any, tmp_path: Path) -> None:
    class Skipping(TrainerCallback):
        """Makes accelerate say that the second step was skipped, and undoes it, as a scaler does."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trainer.optimizer._is_overflow = state.global_step == 1

    recorder, skipping = Recorder(), Skipping()
    trainer = make_trainer(tmp_path, images, [recorder, skipping], teacher_momentum=0.5)
    skipping.trainer = trainer
    trainer.train()
    teachers = [{n: v for n, v in state.items() if n.startswith("teacher.")} for state in recorder.after]
    changed = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(teachers)]
    assert changed == [False, True, False]  # step 1 skipped, step 2 moved; the last momentum is 1


def test_accumulation_gives_the_gradient_of_the_whole_batch(images: Any, tmp_path: Path) -> None:
    """Two micro-batches of one step see what the trainer's own batches hold, and average their gradients."""
    trainer = make_trainer(tmp_path, images, gradient_accumulation_steps=2, max_steps=1, max_grad_norm=0.0)
    start = _state(trainer.model)
    seen: list[dict[str, torch.Tensor]] = []
    original = trainer.views.augment

    def augment(batch: Any, generator: Any = None) -> Any:
        seen.append(original(batch, generator))
        return seen[-1]

    trainer.views.augment = augment
    gradients: dict[str, torch.Tensor] = {}

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    trainer.add_callback(Gradients())
    set_seed(5)
    trainer.train()
    assert len(seen) == 2
    model = GTSAForPreTraining(small_config()).train()
    model.load_state_dict(start)
    set_seed(5)
    for batch in seen:
        (model(**batch, correspondence_weight=0.0).loss / 2).backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_each_tensor_is_clipped_by_itself(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_grad_norm=0.5)
    generator = torch.Generator().manual_seed(0)
    expected, total = {}, 0.0
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * (0.01 if parameter.ndim == 1 else 1)
            norm = parameter.grad.norm()
            total += norm.item() ** 2
            expected[name] = parameter.grad * min(1.0, 0.5 / (norm.item() + 1e-6))
    assert trainer._clip_grad_norm(trainer.model).item() == pytest.approx(total**0.5, rel=1e-5)
    for name, parameter in trainer.model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)


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
    assert 0 < lines[0]["feature_spread"] <= 1


def test_losses_fall_and_features_keep_their_spread(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, images, max_steps=40, logging_steps=10, probe_every_steps=1, correspondence_start=1
    )
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "crop_loss" in entry]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert lines[-1]["feature_spread"] > 0.05
    assert lines[-1]["target_spread"] > 0.05


def test_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=10, save_steps=2, max_nonfinite_steps=1)
    original = trainer.model_arguments
    trainer.model_arguments = lambda step: {"correspondence_weight": math.nan} if step == 5 else original(step)
    weights: list[dict[str, torch.Tensor]] = []

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            weights.append(_state(model))

    trainer.add_callback(Keep())
    with pytest.raises(
        NonFiniteLossError,
        match=r"step 5 or its gradient is not finite.*nonfinite_step_5_rank_0.json.*checkpoint-4 is kept",
    ):
        trainer.train()
    assert all(torch.equal(value, weights[-1][name]) for name, value in trainer.model.state_dict().items())
    record = json.loads((tmp_path / "nonfinite_step_5_rank_0.json").read_text())
    assert record["step"] == 5
    assert len(record["keys"]) == 4
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(images: Any, tmp_path: Path) -> None:
    for clip_mode, norm in (("tensor", 3.0), ("global", 3.0), ("tensor", 0.0)):
        trainer = make_trainer(
            tmp_path / f"{clip_mode}{norm}",
            images,
            save_steps=1,
            clip_mode=clip_mode,
            max_grad_norm=norm,
            max_nonfinite_steps=1,
        )
        trainer.model.projector.projection.weight.register_hook(lambda gradient: gradient * math.nan)
        start = _state(trainer.model)
        with pytest.raises(NonFiniteLossError, match="step 0 or its gradient is not finite.*no checkpoint yet"):
            trainer.train()
        assert all(torch.equal(value, start[name]) for name, value in trainer.model.state_dict().items())


def test_finished_run_is_not_trained_on(images: Any, tmp_path: Path) -> None:
    whole = make_trainer(tmp_path, images, save_steps=2)
    expected = whole.train().training_loss
    resumed = make_trainer(tmp_path, images)
    assert resumed.train(resume_from_checkpoint=True).global_step == 4
    assert not (tmp_path / "checkpoint-5").exists()
    found, weights = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in found.items())
    shorter = make_trainer(tmp_path, images, max_steps=2)
    assert shorter.train(resume_from_checkpoint=True).global_step == 4
    part = make_trainer(tmp_path, images).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert part.training_loss == expected  # of the whole run


def test_resume_with_another_model_views_or_accumulation_is_refused(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, save_steps=2).train()
    path = str(tmp_path / "checkpoint-2")
    with pytest.raises(CheckpointError, match="trained with other settings: batches of a step was 1 and is 2"):
        make_trainer(tmp_path, images, gradient_accumulation_steps=2).train(resume_from_checkpoint=path)
    with pytest.raises(CheckpointError, match="is of another model: rotation_weight was 0.5 and is 0.1"):
        make_trainer(tmp_path, images, rotation_weight=0.1).train(resume_from_checkpoint=path)
    other = GTSATrainer(
        GTSAForPreTraining(small_config()), small_arguments(tmp_path), images, views=small_views(num_local=1)
    )
    with pytest.raises(CheckpointError, match=r"trained with other settings: views\."):
        other.train(resume_from_checkpoint=path)


def test_checkpoint_of_weights_alone_is_not_resumed(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, save_steps=2, save_only_model=True).train()
    with pytest.raises(CheckpointError, match="checkpoint-2 holds no optimizer.*save_only_model"):
        make_trainer(tmp_path, images).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_saving_a_model_draws_no_random_numbers(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=1)
    trainer.train()
    before = torch.get_rng_state()
    trainer.save_model()
    assert torch.equal(before, torch.get_rng_state())


def test_stop_request_holds_for_one_training(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images)

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    stop = Stop()
    trainer.add_callback(stop)
    assert trainer.train().global_step == 2
    assert (tmp_path / "checkpoint-2" / "COMPLETE.json").is_file()
    trainer.remove_callback(stop)
    assert trainer.train(resume_from_checkpoint=True).global_step == 4


def test_alarms_say_what_collapsed(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    callback = CollapseCallback({"rotation_loss": math.log(4)})
    args = small_arguments(tmp_path, max_steps=1000, warmup_steps=0.1)

    class State:
        global_step, max_steps = 500, 1000

    with caplog.at_level(logging.WARNING):
        for _ in range(STUCK_LOGS - 1):
            callback.on_log(args, State, None, {"rotation_loss": 1.3863, "feature_spread": 0.5})
        callback.on_log(args, State, None, {"rotation_loss": 1.2})
        assert caplog.records == []
        for _ in range(STUCK_LOGS):
            callback.on_log(args, State, None, {"rotation_loss": 1.3863})
        callback.on_log(args, State, None, {"feature_spread": 0.0001})
        callback.on_log(args, State, None, {"feature_spread": 0.0001, "target_spread": 0.051})
        callback.on_log(args, State, None, {"target_spread": 0.049})
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "rotation_loss has stayed at 1.3863" in messages[0]
    assert "the same features for all images (feature_spread 0.0001" in messages[1]
    assert "the same targets for all patches (target_spread 0.0490" in messages[2]


def test_collapsed_teacher_has_no_spread(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=1, logging_steps=1, probe_every_steps=1)
    with torch.no_grad():
        trainer.model.teacher.gtsa.layernorm.weight.zero_()
        trainer.model.teacher.gtsa.layernorm.bias.fill_(1.0)
    trainer.train()
    assert trainer.state.log_history[0]["feature_spread"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.state.log_history[0]["target_spread"] < 0.5  # differs only by the position in the map


def test_interrupted_save_leaves_the_checkpoint_before(
    images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, images, save_steps=2)
    original = trainer_module.write_optimizer

    def fail(*args: Any) -> None:
        if trainer.state.global_step == 4:
            raise OSError("no space left on device")
        original(*args)

    monkeypatch.setattr(trainer_module, "write_optimizer", fail)
    with pytest.raises(
        CheckpointError, match="checkpoint-4 could not be written .no space left on device.: see to the"
    ):
        trainer.train()
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_truncated_newest_checkpoint_is_passed_over(
    images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path, images, save_steps=2).train()
    file = tmp_path / "checkpoint-4" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert "checkpoint-4 is passed over: optimizer.pt has" in caplog.text
    with pytest.raises(CheckpointError, match="checkpoint-4 is not whole: optimizer.pt"):
        make_trainer(tmp_path, images).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_checkpoint_of_another_method_or_data_is_refused(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, save_steps=4).train()
    with pytest.raises(ValueError, match="rows"):
        make_trainer(tmp_path, images[:20], max_steps=8).train(resume_from_checkpoint=True)
    config = tmp_path / "checkpoint-4" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"model_type": "gtsa"', '"model_type": "loca"'))
    with pytest.raises(CheckpointError, match="checkpoint of 'loca', and the model to train is 'gtsa'"):
        make_trainer(tmp_path, images, max_steps=8).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        make_trainer(tmp_path / "empty", images).train(resume_from_checkpoint=True)


def test_old_checkpoints_go_and_the_newest_stay(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, max_steps=8, save_steps=2, save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    assert not (tmp_path / ".staging").exists()


def test_save_model_exports_the_teacher_with_a_card(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=6, logging_steps=2, teacher_momentum=0.5, picture=True)
    trainer.train()
    trainer.save_model()
    pixels = torch.randn(2, 3, 40, 24)
    model = AutoModel.from_pretrained(tmp_path)
    teacher = trainer.model.teacher.gtsa.eval()
    assert torch.equal(model(pixels).last_hidden_state, teacher(pixels).last_hidden_state)
    trainer.save_model(str(tmp_path / "student"), weights="student")
    student = AutoModel.from_pretrained(tmp_path / "student")
    assert torch.equal(student(pixels).last_hidden_state, trainer.model.gtsa.eval()(pixels).last_hidden_state)
    assert not torch.equal(student(pixels).last_hidden_state, model(pixels).last_hidden_state)
    with pytest.raises(ValueError, match="'teacher' or 'student', got 'ema'"):
        trainer.save_model(str(tmp_path / "x"), weights="ema")
    card = (tmp_path / "README.md").read_text()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    for fact in (
        "| optimizer steps | 6 |",
        "| images seen | 24 |",
        f"| 6 | {last['loss']:.4f} | {last['crop_loss']:.4f} |",
    ):
        assert fact in card
    assert str(tmp_path) not in card
    assert "N/A" not in card
    assert (tmp_path / "features.png").stat().st_size > 1000
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 32, "width": 32}
    assert not list(tmp_path.glob(".export-*"))
    assert not list(tmp_path.glob("*.bin"))


def test_evaluation_gives_the_pretraining_loss_of_one_pass(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, per_device_eval_batch_size=10)
    trainer.eval_dataset = None
    first = trainer.evaluate(images)["eval_loss"]
    assert trainer.evaluate(images)["eval_loss"] == first
    batches = list(trainer.get_eval_dataloader(images))
    assert [len(batch["crop_boxes"]) for batch in batches] == [10, 10, 4]
    trainer.model.eval()
    losses = [trainer.model(**evaluation_inputs(trainer, batch)).loss.item() for batch in batches]  # the final weights
    assert first == pytest.approx(np.average(losses, weights=[10, 10, 4]), abs=1e-5)  # over images


def test_length_from_epochs_of_a_dataset_with_a_length(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=-1, num_train_epochs=2)
    assert trainer.args.max_steps == 2 * 24 // 4
    with pytest.raises(ValueError, match="a stream has no end.*set max_steps"):
        make_trainer(tmp_path, "scenes", max_steps=-1)


def test_views_that_the_patch_does_not_divide_are_refused(images: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="local_size of the views must be a multiple of the patch size 8, got 20"):
        GTSATrainer(
            GTSAForPreTraining(small_config()), small_arguments(tmp_path), images, views=small_views(local_size=20)
        )


def test_given_learning_rate_is_taken_as_it_is(images: Any, tmp_path: Path) -> None:
    from hf_geossl import GTSATrainingArguments

    for given, expected in (
        ({}, 5e-4 * 4 / 256),
        ({"learning_rate": 0.01}, 0.01),
        ({"base_learning_rate": 0.1}, 0.1 / 64),
    ):
        args = GTSATrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=4, use_cpu=True, picture=False, **given
        )
        trainer = GTSATrainer(GTSAForPreTraining(small_config()), args, images, views=small_views())
        assert trainer.create_optimizer().param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)


def test_other_arguments_and_models_are_named(images: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="args must be GTSATrainingArguments, got NoneType"):
        GTSATrainer(GTSAForPreTraining(small_config()))
    with pytest.raises(TypeError, match="must be a ...ForPreTraining model, got Linear"):
        GTSATrainer(torch.nn.Linear(2, 2), small_arguments(tmp_path), images)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("teacher_momentum", 1.5, r"teacher_momentum must be in \[0, 1\], got 1.5"),
        ("clip_mode", "tensors", "clip_mode must be 'tensor' or 'global', got 'tensors'"),
        ("base_learning_rate", -1.0, "base_learning_rate must be above 0"),
        ("ignore_data_skip", False, "ignore_data_skip on"),
        ("learning_rate", 1e-2, "learning_rate=0.01 and base_learning_rate=0.05 .* were both given"),
        ("save_strategy", "epoch", "save_strategy must be 'steps' or 'no', got 'epoch'"),
    ],
)
def test_arguments_out_of_range_are_named(field: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        small_arguments(tmp_path, **{field: value})


@pytest.mark.parametrize("name", ["gtsa", "loca", "equicoherent"])
def test_arguments_of_another_method_are_refused(name: str, tmp_path: Path) -> None:
    trainers = {"gtsa": GTSATrainer, "loca": LOCATrainer, "equicoherent": EquiCoherentTrainer}
    for other, trainer in trainers.items():
        if other != name:
            args = trainer.arguments_class(output_dir=str(tmp_path), max_steps=1, use_cpu=True)
            expected = trainers[name].arguments_class.__name__
            with pytest.raises(TypeError, match=f"args must be {expected}, got {type(args).__name__}"):
                trainers[name](None, args)
