"""`OptimizerPlan`: clipping, parameter groups, and the learning rate's schedule."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import gtsa_run, loca_run
from tests.helpers.exact_resume import different_weights, whole_and_resumed
from tests.helpers.gtsa_run import make_trainer


@pytest.fixture
def images(smooth_images: Any) -> Any:
    return smooth_images


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


@pytest.mark.parametrize("run", [gtsa_run, loca_run])
def test_other_methods_keep_one_group_for_each_kind(run: Any, images: Any, tmp_path: Path) -> None:
    trainer = run.make_trainer(tmp_path, images)
    groups = trainer.create_optimizer().param_groups
    assert [group["decayed"] for group in groups] == [True, False]
    assert {group["lr"] for group in groups} == {trainer.args.learning_rate}
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, trained))
    assert [group["weight_decay"] for group in groups] == [trainer.args.weight_decay, 0.0]


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adafactor", "sgd", "adamw_bnb_8bit", "paged_adamw_8bit"])
def test_other_optimizers_keep_groups_weight_decay_and_exact_resume(optim: str, images: Any, tmp_path: Path) -> None:
    if optim.endswith("8bit"):
        pytest.importorskip("bitsandbytes", reason="is part of the extra dev: see setup.py")
    fields = {"layer_decay": 0.5, "freeze_trunk_steps": 2, "weight_decay": 0.1, "weight_decay_end": 0.3}
    whole, resumed = whole_and_resumed(make_trainer, tmp_path, images, optim=optim, **fields)
    assert different_weights(whole.model, resumed.model) == []
    names = {id(parameter): name for name, parameter in whole.model.named_parameters()}
    found = {names[id(p)]: group for group in whole.optimizer.param_groups for p in group["params"]}
    assert found.keys() == {name for name, parameter in whole.model.named_parameters() if parameter.requires_grad}
    first, last = found["gtsa.encoder.layer.0.mlp.fc1.weight"], found["gtsa.encoder.layer.1.mlp.fc1.weight"]
    assert (first["trunk"], first["decayed"], first["lr"] * 2) == (True, True, pytest.approx(last["lr"]))
    assert first["weight_decay"] == pytest.approx(whole.plan.weight_decay_at(5))  # of the last step
    assert (found["gtsa.layernorm.bias"]["decayed"], found["gtsa.layernorm.bias"]["weight_decay"]) == (False, 0.0)


def test_an_optimizer_whose_package_is_missing_is_named(
    images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match="pip install -U bitsandbytes"):
        make_trainer(tmp_path, images, optim="paged_adamw_8bit").train()


def test_an_optimizer_of_another_model_is_refused(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images)
    optimizer = torch.optim.AdamW(copy.deepcopy(trainer.model).parameters())
    with pytest.raises(ValueError, match="parameters that are not the model's"):
        trainer.plan.split_groups(optimizer, trainer.model)


@pytest.mark.parametrize(("warmup", "told"), [(0.1, False), (10, True), (25, True)])
def test_a_warm_up_that_is_the_whole_run_is_said(
    warmup: float, told: bool, images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, images, warmup_steps=warmup, max_steps=10)
    trainer.create_scheduler(10, trainer.create_optimizer())
    assert ("is as long as the run: the learning rate only rises" in caplog.text) == told


def test_a_warm_up_that_is_most_of_the_run_is_said(
    images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, images, warmup_steps=8, max_steps=10)
    trainer.create_scheduler(10, trainer.create_optimizer())
    assert "the warm-up of 8 steps is 80% of the run's 10; --warmup_steps 0.05" in caplog.text
