"""Probes: the spread of features."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.gtsa_run import make_trainer


def test_collapsed_teacher_has_no_spread(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=1, logging_steps=1, probe_every_steps=1)
    with torch.no_grad():
        trainer.model.teacher.gtsa.layernorm.weight.zero_()
        trainer.model.teacher.gtsa.layernorm.bias.fill_(1.0)
    trainer.train()
    assert trainer.state.log_history[0]["feature_spread"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.state.log_history[0]["target_spread"] < 0.5  # differs only by the position in the map
