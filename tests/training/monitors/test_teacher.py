"""A teacher that does not follow is reported, with advice."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_geossl import GTSATrainer
from hf_geossl.training.monitors import teacher as teacher_monitor
from hf_geossl.training.monitors.teacher import GROWING_MEASUREMENTS, STILL_MEASUREMENTS, TeacherMonitor
from tests.helpers.gtsa_run import make_trainer


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
    assert [r.getMessage() for r in caplog.records if r.name == teacher_monitor.__name__] == [
        "teacher_momentum is 1 from the first step to the last: the teacher stays what it was at the start. Set "
        "teacher_momentum below 1 (0.996), unless the teacher is to be frozen."
    ]
