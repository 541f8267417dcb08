"""What is not finite is left out and ends a run that stays so."""

import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import AutocastKwargs
from transformers import TrainerCallback

from hf_geossl import GTSATrainer
from hf_geossl.training.checkpoints.files import newest_whole_checkpoint
from hf_geossl.training.monitors.nonfinite import NonFiniteLossError
from tests.helpers import forked
from tests.helpers.exact_resume import different_weights
from tests.helpers.gtsa_run import make_trainer


class Spoil(TrainerCallback):
    """Makes the loss, or a gradient alone, of some steps not a number, and notes what every step leaves."""

    def __init__(self, losses: set[int] = frozenset(), gradients: set[int] = frozenset()) -> None:
        self.losses, self.gradients = losses, gradients
        self.keys: list[list[str]] = []
        self.states: list[dict[str, torch.Tensor]] = []
        self.moments: list[float] = []
        self.rates: list[float] = []

    def attach(self, trainer: GTSATrainer) -> GTSATrainer:
        original = trainer.model_arguments
        broken = {"correspondence_weight": math.nan}
        trainer.model_arguments = lambda step: {**original(step), **(broken if step in self.losses else {})}
        trainer.model.projector.projection.weight.register_hook(
            lambda gradient: gradient * (math.nan if trainer.state.global_step in self.gradients else 1.0)
        )
        trainer.add_callback(self)
        self.trainer = trainer
        return trainer

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.keys.append(list(self.trainer.parts.guard.keys))
        self.states.append({name: value.detach().clone() for name, value in model.state_dict().items()})
        self.moments.append(sum(float(v["exp_avg"].double().sum()) for v in optimizer.state.values()))
        self.rates.append(optimizer.param_groups[0]["lr"])


def _spoiled(folder: Path, images: Any, spoil: Spoil, **fields: Any) -> GTSATrainer:
    return spoil.attach(
        make_trainer(folder, images, **{"max_steps": 9, "logging_steps": 3, "save_steps": 100, **fields})
    )


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_steps_that_are_not_finite_are_left_out_and_counted(
    images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, spoil = Spoil(), Spoil(losses={3, 4}, gradients={6})
    _spoiled(tmp_path / "whole", images, whole).train()
    trainer = _spoiled(tmp_path / "spoiled", images, spoil, gradient_accumulation_steps=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    moved = [
        any(not torch.equal(before[name], after[name]) for name in before)
        for before, after in itertools.pairwise(spoil.states)
    ]
    assert moved == [True, True, False, False, True, False, True, True]  # from step 0 to 1, ...
    assert [a == b for a, b in itertools.pairwise(spoil.moments)] == [not step for step in moved]
    assert spoil.keys == whole.keys  # the data go on
    assert spoil.rates == whole.rates  # and the schedules
    assert trainer.parts.guard.skipped == 3
    lines = [entry for entry in trainer.state.log_history if "skipped_steps" in entry]
    assert [line["skipped_steps"] for line in lines] == [0, 2, 3]
    for line in lines:  # means over the steps that were made
        total = line["crop_loss"] + 0.5 * line["correspondence_loss"] + 0.5 * line["rotation_loss"]
        assert line["step"] == 3 or line["loss"] == pytest.approx(total, abs=1e-5)
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert "grad_norm" in lines[1]
    record = json.loads((tmp_path / "spoiled/nonfinite_step_6_rank_0.json").read_text())
    assert record == {"step": 6, "loss_of_this_process_is_finite": True, "keys": spoil.keys[6]}
    assert not json.loads((tmp_path / "spoiled/nonfinite_step_3_rank_0.json").read_text())[
        "loss_of_this_process_is_finite"
    ]
    assert (
        caplog.text.count("is left out, its loss or gradient is not finite: weights and teacher stay; its images") == 3
    )


def test_a_line_without_a_finite_step_has_no_loss(images: Any, tmp_path: Path) -> None:
    trainer = _spoiled(tmp_path, images, Spoil(losses={1, 2}), logging_steps=1, max_steps=4)
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "skipped_steps" in entry]
    assert ["loss" in line for line in lines] == [True, False, False, True]
    assert ["grad_norm" in line for line in lines] == [True, False, False, True]
    assert json.dumps(trainer.state.log_history, allow_nan=False)


def test_three_in_a_row_stop_the_run_also_across_a_resume(images: Any, tmp_path: Path) -> None:
    message = (
        r"the loss of step 5 or its gradient is not finite, as in the 2 steps before it; its images.*is kept. Lower"
    )
    settings = {"save_steps": 1, "max_nonfinite_steps": 3}
    whole = _spoiled(tmp_path, images, Spoil(losses={1, 3, 4, 5}), **settings)
    with pytest.raises(NonFiniteLossError, match=message):
        whole.train()
    assert whole.state.global_step == 5
    for step in (4, 5):  # with one and two of the three behind it
        resumed = _spoiled(tmp_path, images, Spoil(losses={1, 3, 4, 5}), **settings)
        with pytest.raises(NonFiniteLossError, match=message):
            resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert resumed.parts.guard.skipped == 4
    mended = _spoiled(tmp_path, images, Spoil(losses={1, 3, 4}), **settings)
    mended.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert (mended.parts.guard.skipped, mended.parts.guard.in_a_row) == (3, 0)


def test_resume_after_a_step_that_was_left_out_is_exact(images: Any, tmp_path: Path) -> None:
    spoil = {"losses": {2, 4}, "gradients": {6}}
    whole = _spoiled(tmp_path, images, Spoil(**spoil), save_steps=5, logging_steps=4, max_steps=8)
    whole.train()
    resumed = _spoiled(tmp_path, images, Spoil(**spoil), save_steps=100, logging_steps=4, max_steps=8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert different_weights(whole.model, resumed.model) == []
    ours, theirs = (
        [
            {
                name: value
                for name, value in line.items()
                if "second" not in name and name not in ("data_wait", "train_runtime")
            }
            for line in trainer.state.log_history
            if "train_loss" not in line
        ]
        for trainer in (whole, resumed)
    )
    assert ours == theirs
    assert resumed.state.log_history[-1]["train_loss"] == whole.state.log_history[-1]["train_loss"]


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


TWO = """
import json, sys
from tests.helpers.gtsa_run import make_trainer
folder, data = sys.argv[1:]
trainer = make_trainer(folder, data, max_steps=6, logging_steps=1, save_steps=100)
rank = trainer.args.process_index
see, sums = trainer.parts.guard.observe_loss, []
# of one process only, and without a trace in the gradient
trainer.parts.guard.observe_loss = lambda loss: see(loss * (float("inf") if rank == 1 and trainer.state.global_step in (2, 4) else 1))
count = trainer.parts.meter.count_step
def count_step(skipped):
    count(skipped)
    sums.append(sum(value.double().sum().item() for value in trainer.model.state_dict().values()))
trainer.parts.meter.count_step = count_step
trainer.train()
with open(f"{folder}/report_{rank}.json", "w") as file:
    json.dump({"sums": sums, "skipped": trainer.parts.guard.skipped}, file)
trainer.end_processes()
"""


def test_what_one_process_finds_not_finite_all_leave_out(tmp_path: Path) -> None:
    from tests.helpers.photographs import write_folder

    data = write_folder(tmp_path / "images", 48)
    (tmp_path / "run").mkdir()
    forked.run(TWO, str(tmp_path / "run"), str(data), output=tmp_path / "output.txt", world_size=2)
    first, second = (json.loads((tmp_path / f"run/report_{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["skipped"] == 2
    assert [a == b for a, b in itertools.pairwise(first["sums"])] == [False, True, False, True, False]
    records = [json.loads((tmp_path / f"run/nonfinite_step_2_rank_{rank}.json").read_text()) for rank in range(2)]
    assert [record["loss_of_this_process_is_finite"] for record in records] == [True, False]
    assert not set(records[0]["keys"]) & set(records[1]["keys"])


@pytest.mark.parametrize("norm", [3.0, 0.0])
def test_under_a_gradient_scaler_a_loss_that_is_not_finite_is_left_out_too(
    norm: float, images: Any, tmp_path: Path
) -> None:
    """The scaler skips what only overflowed; where smaller scales do not help, that counts as well."""
    spoil = Spoil(losses={2})
    trainer = _spoiled(tmp_path, images, spoil, max_steps=5, max_grad_norm=norm)
    accelerator = trainer.accelerator
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    accelerator.autocast_handler = AutocastKwargs(enabled=False)
    try:
        trainer.train()
        moved = [
            any(not torch.equal(before[name], after[name]) for name in before)
            for before, after in itertools.pairwise(spoil.states)
        ]
        assert moved == [True, False, True, True]
        assert (trainer.parts.guard.skipped, trainer.parts.guard.in_a_row) == (1, 0)
        endless = _spoiled(tmp_path / "endless", images, Spoil(gradients=set(range(50))), max_steps=50)
        endless.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        endless.accelerator.native_amp = True
        with pytest.raises(NonFiniteLossError, match="is not finite, as in the 2 steps before it"):
            endless.train()
        assert endless.state.global_step == 6  # 8, 4, 2, 1, and three below
    finally:
        accelerator.state._mixed_precision = "no"
