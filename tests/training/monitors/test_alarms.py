"""Collapse and losses at chance level are reported, images of little contrast are not."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from hf_geossl.training.monitors import alarms
from hf_geossl.training.monitors.alarms import STUCK_LOGS, AlarmCallback
from tests.helpers.equicoherent_run import make_trainer as make_equicoherent
from tests.helpers.gtsa_run import make_trainer as make_gtsa
from tests.helpers.gtsa_run import small_arguments
from tests.helpers.loca_run import make_trainer as make_loca


def _instruments(**fields: object) -> SimpleNamespace:
    return SimpleNamespace(**{"floors": {}, "contrast": None, "count": 64, **fields})


def test_alarms_say_what_collapsed(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    callback = AlarmCallback({"rotation_loss": math.log(4)}, _instruments())
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
    callback, args = AlarmCallback({}, _instruments()), small_arguments(tmp_path, max_steps=1000)

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
    callback = AlarmCallback({}, _instruments(contrast=contrast))

    class State:
        global_step, max_steps = 500, 1000
        log_history: ClassVar[list[dict[str, float]]] = [{"target_spread": 0.72}]

    with caplog.at_level(logging.WARNING):
        callback.on_log(small_arguments(tmp_path, max_steps=1000), State, None, {"target_spread": 0.01})
    assert word in caplog.messages[0]
    assert ("collapse" in caplog.messages[0]) == (word == "collapse")


def _log_all(callback: AlarmCallback, lines: list[dict[str, float]], folder: Path, max_steps: int = 200) -> None:
    class State:
        log_history: ClassVar[list[dict[str, float]]] = []

    State.max_steps = max_steps
    for line in lines:
        State.global_step = line["step"]
        State.log_history.append(line)
        callback.on_log(small_arguments(folder, max_steps=max_steps, warmup_steps=0.1), State, None, line)


def test_a_probe_that_falls_while_the_loss_falls_is_overfitting(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def lines(accuracies: list[float], slope: float) -> list[dict[str, float]]:
        return [
            {"step": 20 * place, "loss": 3 - slope * place, "knn_accuracy": accuracy}
            for place, accuracy in enumerate(accuracies, 1)
        ]

    rises = [0.3, 0.5, 0.6, 0.55, 0.5, 0.6, 0.5, 0.55]  # within two errors of .6, which are .17 each of 64 images
    falls = [0.3, 0.5, 0.6, 0.5, 0.4, 0.35, 0.3, 0.3]
    with caplog.at_level(logging.WARNING):
        _log_all(AlarmCallback({}, _instruments()), lines(rises, 0.1), tmp_path)
        _log_all(AlarmCallback({}, _instruments()), lines(falls, -0.1), tmp_path)  # the loss rises too
        assert caplog.messages == []
        _log_all(AlarmCallback({}, _instruments()), lines(falls, 0.1), tmp_path)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "overfitted: knn_accuracy has fallen from 0.600 at step 60 to 0.300 at step 140 while the loss has fallen from 2.700 to"
    )
    assert "metric_for_best_model=knn_accuracy" in caplog.messages[0]


def test_lost_directions_are_a_collapse_told_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    callback = AlarmCallback({}, _instruments(floors={"rankme": {"random weights": 12.0}}))
    ranks = [12.0, 20.0, 11.0, 6.0, 4.0, 3.5, 3.0]
    lines = [{"step": 20 * n, "rankme": rank, "feature_spread": 0.5} for n, rank in enumerate(ranks, 1)]
    with caplog.at_level(logging.WARNING):
        _log_all(callback, lines[:5], tmp_path)
        assert caplog.messages == []
        _log_all(callback, [*lines, {"step": 160, "rankme": 1.0, "feature_spread": 0.001}], tmp_path)
    assert len(caplog.messages) == 1
    assert "use few directions (RankMe 3.5, 20.0 before, 12.0 with random weights). Lower the learning" in caplog.text


def test_a_run_that_does_not_start_is_flagged_within_200_steps(
    images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"host": "dino", "teacher_temperature": 1.0}
    with caplog.at_level(logging.WARNING):
        make_equicoherent(
            tmp_path,
            images,
            config=config,
            max_steps=40,
            logging_steps=2,
            probe_every_steps=0,
            teacher_temperature_warmup=0,
        ).train()
    found = [message for message in caplog.messages if message.startswith("not started: at step")]
    assert len(found) == 1
    assert "entropy 3.46 of ln K = 3.47" in found[0]
    assert "Lower teacher_temperature" in found[0]
    assert not any("class_loss has stayed" in message for message in caplog.messages)


def test_a_collapse_is_flagged_within_200_steps(
    smooth_images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """VICReg without its variance and covariance makes all features the same."""
    config = {"host": "vicreg", "variance_weight": 0.0, "covariance_weight": 0.0, "reconstruction_weight": 0.0}
    with caplog.at_level(logging.WARNING):
        make_equicoherent(
            tmp_path, smooth_images, config=config, max_steps=100, logging_steps=10, probe_every_steps=10, probe_images=16,
            per_device_train_batch_size=8, base_learning_rate=0.3,
        ).train()  # fmt: skip
    assert sum(message.startswith("collapse: at step") for message in caplog.messages) == 1


HEALTHY = {"initializer_range": 0.1, "teacher_temperature": 0.04, "drop_path_rate": 0.0}


@pytest.mark.parametrize("method", ["gtsa", "loca", "dino", "ibot", "dinov2", "vicreg", "simclr"])
def test_healthy_runs_raise_no_alarm(
    method: str, smooth_images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"max_steps": 14, "logging_steps": 1, "probe_every_steps": 4, "per_device_train_batch_size": 8}
    make: Any = {"gtsa": make_gtsa, "loca": make_loca}.get(method, make_equicoherent)
    if make is make_equicoherent:
        own = HEALTHY if method in ("dino", "ibot", "dinov2") else {}
        fields |= {"config": {"host": method, **own}, "base_learning_rate": 3e-2}
    with caplog.at_level(logging.WARNING):
        trainer = make(tmp_path, smooth_images, **fields)
        trainer.train()
    assert [record.getMessage() for record in caplog.records if record.name == alarms.__name__] == []
    assert sum("rankme" in line for line in trainer.state.log_history) == 4


def test_images_of_little_contrast_raise_no_collapse(
    images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grey = [{"image": (128 + (row["image"].astype(float) - 128) / 60).astype("uint8")} for row in images]
    with caplog.at_level(logging.WARNING):
        make_loca(tmp_path, grey, max_steps=12, logging_steps=1, probe_every_steps=2).train()
    assert not any(message.startswith(("collapse", "not started", "overfitted")) for message in caplog.messages)
