"""What a run prints: the bar and its clock."""

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from hf_geossl.training.logs.progress import ImagesProgressCallback
from tests.helpers.gtsa_run import make_trainer


def test_a_clock_that_is_set_in_between_changes_no_speed(
    images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = itertools.cycle([0.0, 9e5, -9e5])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    monkeypatch.setattr("tqdm.std.time", time.time)  # imported by name
    began = time.perf_counter()
    trainer = make_trainer(tmp_path, images, max_steps=6, logging_steps=2, disable_tqdm=False)
    bar: dict[str, Any] = {}
    progress = next(c for c in trainer.callback_handler.callbacks if isinstance(c, ImagesProgressCallback))
    close = progress.on_train_end

    def look(*args: Any, **kwargs: Any) -> None:
        bar.update(progress.training_bar.format_dict)
        close(*args, **kwargs)

    progress.on_train_end = look
    metrics = trainer.train().metrics
    most = time.perf_counter() - began
    assert 0 < trainer.parts.stopwatch.trained < most
    assert 0 < bar["elapsed"] < most
    assert bar["rate"] is None or 1 / most < bar["rate"] < 1000
    for line in trainer.state.log_history:
        assert "images_per_second" not in line or 4 / most < line["images_per_second"] < 4000
    assert 0 < metrics["train_runtime"] < most
    assert 24 / most <= metrics["train_samples_per_second"] < 4000
    assert 6 / most <= metrics["train_steps_per_second"] < 1000
