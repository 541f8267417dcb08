"""What is not finite is left out and ends a run that stays so; collapse, and a teacher that does not follow, are reported."""

import itertools
import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate.utils import AutocastKwargs
from transformers import TrainerCallback

from hf_geossl import GTSATrainer
from hf_geossl.training import monitors
from hf_geossl.training.checkpoints.files import newest_whole_checkpoint
from hf_geossl.training.monitors import (
    GROWING_MEASUREMENTS,
    STILL_MEASUREMENTS,
    STUCK_LOGS,
    CollapseCallback,
    NonFiniteLossError,
    TeacherMonitor,
)
from tests.helpers.exact_resume import different_weights
from tests.helpers.golden import ROOT
from tests.helpers.gtsa_run import make_trainer, small_arguments


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
import torch
from tests.helpers.gtsa_run import make_trainer
torch.set_num_threads(1)
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
    (tmp_path / "script.py").write_text(TWO)
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    process = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path / "run"), str(data)],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
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


def _measured(trainer: GTSATrainer, change: Any, measurements: int, momentum: float = 0.996) -> list[float]:
    """Distances of a teacher from its drifting student, with `change(model)` instead of the teacher's update."""
    monitor, model, found = TeacherMonitor(), trainer.model, []
    for step in range(measurements):
        found.append(monitor.measure(model, step, momentum, settled=True))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * (step + 1))
        change(model)
    return found


@pytest.mark.parametrize(
    ("change", "momentum", "message"),
    [
        (lambda model: model.copy_student_to_teacher(), 0.996, "the teacher equals the student in every weight although"),
        (lambda model: None, 0.996, "the teacher has not moved since the last 3 measurements although the student has"),
        (lambda model: model.update_teacher(0.99999), 0.99999, "of the student's norm away from it, farther at each of the"),
        (lambda model: model.update_teacher(0.2), 0.2, None),
        (lambda model: model.copy_student_to_teacher(), 0.0, None),
    ],
    ids=["equal", "still", "growing", "follows", "momentum 0"],
)  # fmt: skip
def test_a_teacher_that_does_not_follow_is_reported_once_with_advice(
    change: Any, momentum: float, message: str | None, images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, images)
    measurements = GROWING_MEASUREMENTS + 3 if message and "farther" in message else STILL_MEASUREMENTS + 3
    with caplog.at_level(logging.WARNING):
        distances = _measured(trainer, change, measurements, momentum)
    assert distances[0] == 0.0  # the teacher starts as a copy
    expected = [message] if message else []
    assert [part in record.getMessage() for record, part in zip(caplog.records, expected, strict=True)] == [True] * len(
        expected
    )
    for record in caplog.records:
        assert re.search(r"(Make the model anew|Call on_optimizer_step|Lower the learning rate)", record.getMessage())


def test_distance_of_the_teacher_is_what_the_formula_says(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, logging_steps=1, probe_every_steps=1, teacher_momentum=0.5, max_steps=3)
    trainer.train()
    lines = [entry["teacher_distance"] for entry in trainer.state.log_history if "teacher_distance" in entry]
    assert lines[:2] == [0.0, 0.0]  # the first step has a learning rate of 0
    assert lines[2] > 0
    teacher = torch.cat([value.flatten() for value in trainer.model.teacher.parameters()])
    own = dict(trainer.model.named_parameters())
    student = torch.cat([own[name].flatten() for name, _ in trainer.model.teacher.named_parameters()])
    with torch.no_grad():
        expected = ((teacher - student).norm() / student.norm()).item()
    assert TeacherMonitor().measure(trainer.model, 3, 0.5, True) == pytest.approx(expected, rel=1e-4)


def test_a_momentum_of_1_from_the_start_is_reported(
    images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path, images, max_steps=1, teacher_momentum=1.0).train()
        make_trainer(tmp_path, images, max_steps=1).train()
    assert [r.getMessage() for r in caplog.records if r.name == monitors.__name__] == [
        "teacher_momentum is 1 from the first step to the last: the teacher stays what it was at the start. Set "
        "teacher_momentum below 1 (0.996), unless the teacher is to be frozen."
    ]


def test_alarms_say_what_collapsed(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    callback = CollapseCallback({"rotation_loss": math.log(4)})
    args = small_arguments(tmp_path, max_steps=1000, warmup_steps=0.1)

    class State:
        global_step, max_steps = 500, 1000
        log_history: ClassVar[list[dict[str, float]]] = [{"feature_spread": 0.6, "target_spread": 0.3}]

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
    assert "the same targets for all patches (target_spread 0.0490, 0.3000 before" in messages[2]


def test_images_of_little_contrast_are_no_collapse(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Their features are alike from the first step on; what counts is the spread that has been lost since."""
    callback, args = CollapseCallback({}), small_arguments(tmp_path, max_steps=1000)

    class State:
        global_step, max_steps = 500, 1000
        log_history: ClassVar[list[dict[str, float]]] = []

    def log(spread: float) -> None:
        State.log_history.append({"feature_spread": spread})  # as transformers does before it calls
        callback.on_log(args, State, None, State.log_history[-1])

    with caplog.at_level(logging.WARNING):
        for spread in (0.03, 0.02, 0.04, 0.0121):
            log(spread)
        assert caplog.messages == []
        log(0.0119)  # below .3 of .04
    assert "feature_spread 0.0119, 0.0400 before" in caplog.messages[0]


@pytest.mark.parametrize(("contrast", "word"), [(0.04, "little contrast (a deviation of 0.04"), (0.9, "collapse")])
def test_targets_that_become_alike_on_images_of_little_contrast(
    contrast: float, word: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """LOCA's targets on photographs of a thirtieth of their contrast went from 0.72 to 0.01, features staying at 0.5."""
    callback = CollapseCallback({}, lambda: contrast)

    class State:
        global_step, max_steps = 500, 1000
        log_history: ClassVar[list[dict[str, float]]] = [{"target_spread": 0.72}]

    with caplog.at_level(logging.WARNING):
        callback.on_log(small_arguments(tmp_path, max_steps=1000), State, None, {"target_spread": 0.01})
    assert word in caplog.messages[0]
    assert ("collapse" in caplog.messages[0]) == (word == "collapse")


@pytest.mark.parametrize("share", [1, 1 / 30])
def test_probes_measure_the_contrast_inside_views(share: float, images: Any, tmp_path: Path) -> None:
    """In deviations of the normalisation, ImageNet's here, which is that of no single image."""
    grey = [{"image": (128 + (row["image"].astype(float) - 128) * share).astype("uint8")} for row in images]
    trainer = make_trainer(tmp_path, grey, max_steps=1, logging_steps=1, probe_every_steps=1)
    trainer.train()
    deviations = [(row["image"] / 255 / 0.225).std(axis=(0, 1)).mean() for row in grey]
    measured = trainer.parts.probes.contrast
    assert 0.3 < measured / (sum(deviations) / len(deviations)) < 2
    assert (measured < monitors.LITTLE_CONTRAST) == (share < 1)


def test_collapsed_teacher_has_no_spread(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=1, logging_steps=1, probe_every_steps=1)
    with torch.no_grad():
        trainer.model.teacher.gtsa.layernorm.weight.zero_()
        trainer.model.teacher.gtsa.layernorm.bias.fill_(1.0)
    trainer.train()
    assert trainer.state.log_history[0]["feature_spread"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.state.log_history[0]["target_spread"] < 0.5  # differs only by the position in the map
