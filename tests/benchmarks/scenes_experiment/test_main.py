"""The command of the desk-scale experiment: what is run, what goes on after an end, and what the table says."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scenes_experiment import __main__ as command
from benchmarks.scenes_experiment import runs
from benchmarks.scenes_experiment.presets import Preset


class FakeArms:
    """Stands for `run_arm`: numbers that are made up from arm and seed; ends the call at one arm, when it is asked to."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []
        self.weights: dict[str, float | None] = {}
        self.ends_at: tuple[str, int] | None = None
        self.error: type[BaseException] = KeyboardInterrupt

    def __call__(self, name: str, seed: int, preset: Preset, *others: object) -> dict[str, Any]:
        """A line of results."""
        if (name, seed) == self.ends_at:
            raise self.error("no memory is left")
        self.ran.append((name, seed))
        self.weights[name] = preset.reconstruction_weight
        value = 0.5 + 0.01 * seed + 0.001 * len(name)
        r2 = {"rotation_r2_ridge": value, "rotation_r2_bilinear": 0.9 if name.endswith("@5") else value}
        beaten = {"beats_all_floors": {"rotation": {"ridge": True, "bilinear": True}}}
        return {
            "arm": name,
            "seed": seed,
            "settings": runs.settings_digest(name, seed, preset),
            "training": {"prediction_diversity": [1.0, 1.0], "images_per_second": 10.0},
            "tasks": {
                "knn": {"accuracy": value, "details": {"floors": {"accuracy": {"thumbnail": 0.3}}}},
                "segmentation": {"mean_iou": value},
                "equivariance": {**r2, "details": beaten},
            },
            "seconds": {"training": 1.0, "probes": 2.0, "whole": 3.0},
            "machine": "a CPU",
        }


Run = Callable[..., int]


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> FakeArms:
    fake = FakeArms()
    monkeypatch.setattr(runs, "run_arm", fake)
    monkeypatch.setattr(runs.ArmWork, "prepare", lambda self: None)  # which changes loggers and threads
    return fake


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*words: str, output: str = "out") -> int:
        given = ["--preset", "tiny", "--parallel", "1", "--work", str(tmp_path / "work")]
        return command.main([*given, "--output", str(tmp_path / output), *words])

    return call


@pytest.mark.parametrize("ends_at", [("ibot_equicoherent@5", 3), ("random", 0), ("gtsa", 1), ("ibot_equicoherent", 2)])
def test_an_interrupted_run_goes_on_and_ends_at_the_same_table(
    arms: FakeArms, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], ends_at: tuple[str, int]
) -> None:
    words = ("--arms", "random,gtsa,ibot_equicoherent")
    assert run(*words) == 0
    undisturbed, jobs = (tmp_path / "out" / "README.md").read_text(), list(arms.ran)
    assert len(jobs) == 3 * 3 + 3
    arms.ran, arms.ends_at = [], ends_at
    capsys.readouterr()
    assert run(*words, output="cut") == 130
    assert f"interrupted: {jobs.index(ends_at)} arms are done and kept in" in capsys.readouterr().out
    arms.ends_at = None
    assert run(*words, output="cut") == 0
    assert arms.ran == jobs  # every arm once
    assert (tmp_path / "cut" / "README.md").read_text() == undisturbed
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["README.md", "results.jsonl"]


def test_the_weight_is_chosen_on_another_seed_and_declared_before_the_arms(
    arms: FakeArms, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms.ends_at = ("random", 0)
    run("--arms", "random,ibot_control,ibot_equicoherent")
    about = json.loads((tmp_path / "out" / "results.jsonl").read_text().splitlines()[0])["about"]
    assert about["reconstruction_weight"]["weight"] == 5
    assert about["reconstruction_weight"]["seed"] == 3
    assert [seed for _, seed in arms.ran] == [3, 3, 3]
    arms.ends_at = None
    run("--arms", "random,ibot_control,ibot_equicoherent")
    assert arms.weights["ibot_equicoherent"] == 5
    with pytest.raises(SystemExit):
        run("--seeds", "2,3")
    assert "seed 3 has chosen the reconstruction weight" in capsys.readouterr().err
    assert "Reconstruction weight 5, chosen before the run" in (tmp_path / "out" / "README.md").read_text()


def test_no_arm_is_started_after_the_minutes(arms: FakeArms, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--minutes", "0") == 0
    assert arms.ran == []
    assert "0 minutes are over: no further arm is started\n" in capsys.readouterr().out


def test_an_arm_that_fails_is_said_and_tried_again(
    arms: FakeArms, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    arms.ends_at, arms.error = ("dino", 0), RuntimeError
    words = ("--arms", "random,dino,gtsa", "--seeds", "0")
    assert run(*words) == 0
    assert "dino, seed 0, is not finished: RuntimeError: no memory is left" in capsys.readouterr().out
    arms.ends_at, arms.ran = None, []
    run(*words)
    assert arms.ran == [("dino", 0)]


def test_the_gate_is_on_the_top_and_times_at_the_end(
    arms: FakeArms, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--arms", "random,dino", "--seeds", "0")
    text = capsys.readouterr().out
    assert text.index("## Gate") < text.index("## Claims") < text.index("## Numbers") < text.index("## Times")
    row = next(line for line in text.splitlines() if line.startswith("| dino |"))
    # .504 of DINO, .506 of random weights
    assert "50.4 / 50.6 / 30.0" in row
    assert "**no** (k-NN above random, segmentation above random)" in row
    assert "| dino | 1 | 2 | 10 |" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--set", "steps=9"), "of other settings"),
        (("--set", "stepps=9"), "there is no setting stepps"),
        (("--arms", "dyno"), "there is no arm dyno"),
    ],
)
def test_what_cannot_be_run_ends_in_one_sentence(
    arms: FakeArms, run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    run("--arms", "gtsa", "--seeds", "0")
    with pytest.raises(SystemExit) as end:
        run("--seeds", "0", *words)
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


def test_two_starts_do_not_share_a_folder(
    arms: FakeArms, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    with (tmp_path / "work" / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            run()
    assert "another start is at work" in capsys.readouterr().err
    assert arms.ran == []
