import itertools
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from hf_geossl.training.progress import ImagesProgressCallback
from tests.helpers import forked
from tests.helpers.gtsa_run import make_trainer, small_arguments


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


# ---- What a terminal and a pipe show ----

WITHOUT_STDERR = "import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 2)"
CHILD = """
import sys, time
from pathlib import Path
import numpy as np
from transformers import TrainerCallback
from tests.helpers.gtsa_run import make_trainer

folder, bar, wait = Path(sys.argv[1]), sys.argv[2] == "bar", sys.argv[3] == "wait"
generator = np.random.default_rng(0)
images = [{"image": generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)} for _ in range(24)]


class Watch(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        deadline = time.monotonic() + 60
        while wait and state.global_step == 2 and not (folder / "seen").exists() and time.monotonic() < deadline:
            time.sleep(0.02)


trainer = make_trainer(
    folder / "run", images, [Watch()], max_steps=5, logging_steps=1, disable_tqdm=not bar, max_nonfinite_steps=3,
    save_steps=2,
)
original = trainer.model_arguments
broken = {"correspondence_weight": float("nan")}
trainer.model_arguments = lambda step: {**original(step), **(broken if step == 3 else {})}
trainer.train()
print("trained" if not wait or (folder / "seen").exists() else "nobody has seen a line")
"""


def test_a_pipe_gets_each_line_when_it_is_written(tmp_path: Path) -> None:
    """The run waits in its third step until the line of its second has been read."""
    os.mkfifo(tmp_path / "pipe")
    process = forked.start(f"{WITHOUT_STDERR}\n{CHILD}", str(tmp_path), "no bar", "wait", output=tmp_path / "pipe")
    lines = []
    with (tmp_path / "pipe").open() as pipe:
        for line in pipe:
            lines.append(line.rstrip())
            if lines[-1].startswith("step 2: loss "):
                (tmp_path / "seen").touch()
    process.join(60)
    assert process.exitcode == 0
    assert lines[-1] == "trained"
    starts = [line.split(",")[0].rsplit(" ", 1)[0] for line in lines[:3]]
    assert starts == ["step 1: loss", "step 2: loss", "step 3: loss"]
    assert lines[3] == "step 4: 1 step left out, none made since"
    assert lines[5].startswith("step 5: trained for 0:00:")
    assert not [line for line in lines if "{" in line]  # no raw dictionary


def _screen(output: str) -> list[str]:
    """What a terminal shows of an output in the end."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for part in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", output):
        if part == "\x1b[A":
            row = max(row - 1, 0)
        elif part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
        else:
            rows += [[] for _ in range(row + 1 - len(rows))]
            rows[row] += [" "] * (column - len(rows[row]))
            rows[row][column : column + len(part)] = part
            column += len(part)
    return ["".join(cells).rstrip() for cells in rows]


def test_messages_do_not_tear_the_bar(tmp_path: Path) -> None:
    """Log lines and a warning of a step that is left out, all in one terminal: each on lines of its own, whole."""
    output = forked.run(CHILD, str(tmp_path), "bar", "go on", output=tmp_path / "output.txt")
    assert "pretraining:" in output
    rows = _screen(output)
    assert len([row for row in rows if re.match(r"step [1-5]: (loss|1 step left out)", row)]) == 5, rows
    (warning,) = [row for row in rows if "step 3 is left out" in row]
    assert warning.startswith("step 3 is left out, its loss or gradient is not finite")
    assert warning.endswith("(max_nonfinite_steps)")
    bars = [row for row in rows if "pretraining:" in row]
    assert len(bars) == 1, rows
    assert bars[0].startswith("pretraining: 100%")
    assert not [row for row in rows if "{'" in row], rows


def test_the_lines_of_a_run_are_words(tmp_path: Path) -> None:
    progress = ImagesProgressCallback(
        small_arguments(tmp_path), metrics=("location_accuracy",), quantities=("entropy",)
    )
    line = {
        "loss": 1.23456, "crop_loss": 0.5, "location_accuracy": 0.0625, "entropy": 2.0, "learning_rate": 1e-3,
        "feature_spread": 0.123, "images_per_second": 12.34, "data_wait": 0.126, "matrix_rate_share": 0.404,
        "memory_mb": 1536, "skipped_images": 1, "skipped_steps": 2, "epoch": 0.1,
    }  # fmt: skip
    assert progress.describe(7, line) == (
        "step 7: loss 1.235, crop 0.500, entropy 2.000, location accuracy 6.2 %, learning rate 1.00e-03, "
        "feature spread 0.12, 12.3 images/s, 40 % of the bf16 rate, 13 % waiting for images, 1.5 GiB, broken images passed over 1 time, 2 steps left out"
    )
    ended = {"train_runtime": 61.2, "train_samples_per_second": 5.0, "train_loss": 2.0, "epoch": 1.0}
    assert progress.describe(9, ended) == "step 9: trained for 0:01:01, 5.0 images/s, mean loss 2.000"
    held_out = {"eval_loss": 1.0, "eval_crop_loss": 0.5, "eval_images": 1, "eval_runtime": 3.0}
    assert progress.describe(9, held_out) == "step 9, 1 held-out image: loss 1.000, crop 0.500"
    assert progress.describe(9, {"epoch": 1.0}) is None
    assert progress.describe(9, {"my_number": 0.123456, "epoch": 1.0}) == "step 9: my number 0.1235"


def test_a_notebook_shows_one_bar(images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There transformers' own default is a table, whose epochs of a stream are 1 of 9223372036854775807."""

    class Table(TrainerCallback):
        pass

    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", Table)
    shown = make_trainer(tmp_path, images, max_steps=1, disable_tqdm=False).callback_handler.callbacks
    assert not any(isinstance(callback, Table) for callback in shown)
    assert sum(isinstance(callback, ImagesProgressCallback) for callback in shown) == 1
