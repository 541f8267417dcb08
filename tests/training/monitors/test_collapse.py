"""Alarms: features that lose their spread, losses that stay at chance level."""

import logging
import math
from pathlib import Path

import pytest

from hf_geossl.training.monitors.collapse import STUCK_LOGS, CollapseCallback
from tests.helpers.gtsa_run import small_arguments


def test_alarms_say_what_collapsed(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    callback = CollapseCallback({"rotation_loss": math.log(4)})
    args = small_arguments(tmp_path, max_steps=1000, warmup_steps=0.1)

    class State:
        global_step, max_steps = 500, 1000

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
    assert "the same targets for all patches (target_spread 0.0490" in messages[2]
