"""`TeacherStudentTrainer`, in GTSA's runs: exact resume, seeds, accumulation, and what it refuses and leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, TrainerCallback, set_seed

from hf_geossl import EquiCoherentTrainer, GTSAForPreTraining, GTSATrainer, LOCATrainer
from tests.helpers.exact_resume import different_weights, undisturbed_and_resumed
from tests.helpers.gtsa_run import make_trainer, small_arguments, small_config
from tests.helpers.inputs import record_inputs


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _losses(trainer: GTSATrainer) -> list[tuple[Any, ...]]:
    names = ("step", "loss", "crop_loss", "correspondence_loss", "rotation_loss", "grad_norm", "learning_rate", "epoch")
    return [tuple(entry[name] for name in names) for entry in trainer.state.log_history if "crop_loss" in entry]


def test_resume_after_kill_with_workers_continues_bit_for_bit(tmp_path: Path) -> None:
    undisturbed, resumed = undisturbed_and_resumed(make_trainer, tmp_path, workers=2)
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


def test_accumulation_gives_the_gradient_of_the_whole_batch(images: Any, tmp_path: Path) -> None:
    """Two micro-batches of one step see what the trainer's own batches hold, and average their gradients."""
    trainer = make_trainer(tmp_path, images, gradient_accumulation_steps=2, max_steps=1, max_grad_norm=0.0)
    start = _state(trainer.model)
    seen = record_inputs(trainer)
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


def test_saving_a_model_draws_no_random_numbers(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=1)
    trainer.train()
    before = torch.get_rng_state()
    trainer.save_model()
    assert torch.equal(before, torch.get_rng_state())


def test_no_processor_means_that_of_the_views(images: Any, tmp_path: Path) -> None:
    """As transformers' Trainer, whose default it is."""
    trainer = GTSATrainer(GTSAForPreTraining(small_config()), small_arguments(tmp_path), images, processing_class=None)
    assert trainer.processing_class.size["height"] == trainer.views.global_size


def test_other_arguments_and_models_are_named(images: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="args must be GTSATrainingArguments, got NoneType"):
        GTSATrainer(GTSAForPreTraining(small_config()))
    with pytest.raises(TypeError, match="must be a ...ForPreTraining model, got Linear"):
        GTSATrainer(torch.nn.Linear(2, 2), small_arguments(tmp_path), images)


@pytest.mark.parametrize("name", ["gtsa", "loca", "equicoherent"])
def test_arguments_of_another_method_are_refused(name: str, tmp_path: Path) -> None:
    trainers = {"gtsa": GTSATrainer, "loca": LOCATrainer, "equicoherent": EquiCoherentTrainer}
    for other, trainer in trainers.items():
        if other != name:
            args = trainer.arguments_class(output_dir=str(tmp_path), max_steps=1, use_cpu=True)
            expected = trainers[name].arguments_class.__name__
            with pytest.raises(TypeError, match=f"args must be {expected}, got {type(args).__name__}"):
                trainers[name](None, args)


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
