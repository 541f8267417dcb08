"""Pictures reach the trackers before these are closed, and what fails there costs the run nothing."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.helpers.gtsa_run import make_trainer


class TensorBoardCallback(TrainerCallback):
    """As transformers', whose writer is closed at the end of the training."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}
        self.tb_writer: Any = SimpleNamespace(add_image=self.add_image, flush=lambda: None)

    def add_image(self, name: str, pixels: Any, step: int, dataformats: str) -> None:
        self.sent[name] = (pixels.shape[2], pixels.dtype.name, step, dataformats)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.tb_writer = None


class WandbCallback(TrainerCallback):
    """Its module is replaced in the test."""


class MLflowCallback(TrainerCallback):
    """Its module is replaced in the test."""


class TrackioCallback(TrainerCallback):
    """Its module is replaced in the test."""


def test_learning_curve_and_features_are_sent(
    images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logged: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Image=Path, log=logged.append))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Image=None, log=None))
    artifacts: list[str] = []
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(log_artifact=artifacts.append))
    board = TensorBoardCallback()
    with caplog.at_level(logging.WARNING):
        make_trainer(
            tmp_path,
            images,
            [board, WandbCallback(), MLflowCallback(), TrackioCallback()],
            max_steps=2,
            probe_every_steps=2,
            picture=True,
        ).train()
    assert board.sent == {
        "learning_curve": (3, "uint8", 2, "HWC"),
        "features": (3, "uint8", 2, "HWC"),
        "turns": (3, "uint8", 2, "HWC"),
    }
    assert logged == [
        {
            "learning_curve": tmp_path / "learning_curve.png",
            "features": tmp_path / "features.png",
            "turns": tmp_path / "turns.png",
            "train/global_step": 2,
        }
    ]
    assert sorted(artifacts) == [str(tmp_path / name) for name in ("features.png", "learning_curve.png", "turns.png")]
    assert "pictures for TrackioCallback could not be made (TypeError" in caplog.text
