"""Collapse and losses at chance level are reported, images of little contrast are not."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from hf_geossl.training.monitors.alarms import STUCK_LOGS, AlarmCallback
from tests.helpers.gtsa_run import small_arguments


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
