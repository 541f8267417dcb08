"""kill -9 ten times in a row, of one process or of all: the weights and images of the run that nobody disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_geossl.training.checkpoints.files import list_checkpoints, newest_whole_checkpoint
from tests.helpers import chaos_run
from tests.helpers.forked import FORKSERVER, free_port
from tests.helpers.golden import ROOT
from tests.helpers.photographs import write_folder

pytestmark = pytest.mark.slow

SAVE = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("data") / "images", 50))


def _settings(folder: Path, data: str, **more: Any) -> dict[str, Any]:
    defaults = {"max_steps": 30, "save_steps": SAVE, "logging_steps": 4, "save_total_limit": 2, "num_streams": 4}
    return {"output_dir": str(folder), "data": data, "dataloader_num_workers": 0, **defaults, **more}


def _launch(
    settings: dict[str, Any],
    world_size: int = 1,
    victims: tuple[int, ...] = (),
    point: str | None = None,
    step: int = -1,
) -> list[int | None]:
    """Runs all processes until they end; where one is killed the others follow, as a launcher sees to."""
    port = free_port()
    tasks = [(settings, rank, world_size, port, point if rank in victims else None, step) for rank in range(world_size)]
    started = [_start(task) for task in tasks]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(code() is None for code, _ in started):
        if any(code() for code, _ in started):
            time.sleep(0.3)  # the others may notice by themselves
            break
        time.sleep(0.02)
    for code, pid in started:
        if code() is None:
            os.kill(pid, signal.SIGKILL)
        while code() is None:
            time.sleep(0.01)
    return [code() for code, _ in started]


def _start(task: tuple[Any, ...]) -> tuple[Any, int]:
    """
    A process as a function that gives its exit code, and its id: forked from one that has imported all; anew where it has
    workers.
    """
    if task[0]["dataloader_num_workers"] == 0:
        forked = FORKSERVER.Process(target=chaos_run.run, args=task)
        forked.start()
        assert forked.pid is not None
        return lambda: forked.exitcode, forked.pid
    paths = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.Popen(
        [sys.executable, chaos_run.__file__, json.dumps(task)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        start_new_session=True,
    )
    return process.poll, process.pid


def _output(folder: Path) -> str:
    return "".join(file.read_text()[-2000:] for file in sorted(folder.glob("output_*.txt")))


def _undisturbed(folder: Path, data: str, world_size: int, **more: Any) -> Path:
    codes = _launch(_settings(folder, data, **more), world_size)
    assert codes == [0] * world_size, _output(folder)
    return folder


def _diary(folder: Path, world_size: int, rank: int) -> dict[int, list[str]]:
    """Images by step; a step that was made again was made with the same."""
    seen: dict[int, list[str]] = {}
    for line in (folder / f"diary_{world_size}_{rank}.jsonl").read_text().splitlines():
        step, keys = json.loads(line)
        assert seen.setdefault(step, keys) == keys, f"step {step} of rank {rank} saw other images the second time"
    return seen


def _differences(first: Any, second: Any, name: str = "") -> list[str]:
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [name]
    if isinstance(first, dict):
        assert first.keys() == second.keys(), name
        return [found for key in first for found in _differences(first[key], second[key], f"{name}.{key}")]
    if isinstance(first, list):
        assert len(first) == len(second), name
        pairs = enumerate(zip(first, second, strict=True))
        return [found for index, pair in pairs for found in _differences(*pair, f"{name}.{index}")]
    return [] if first == second else [f"{name}: {first} and {second}"]


def _assert_equal(whole: Path, killed: Path, world_size: int, steps: int) -> None:
    for rank in range(world_size):
        expected, found = (torch.load(folder / f"final_{rank}.pt") for folder in (whole, killed))
        assert _differences(expected, found) == []
        assert _diary(killed, world_size, rank) == _diary(whole, world_size, rank)
        assert sorted(_diary(whole, world_size, rank)) == list(range(steps))
    assert not (killed / ".staging").exists()
    assert [path.name for path in list_checkpoints(killed)] == [f"checkpoint-{steps}", f"checkpoint-{steps - SAVE}"]


def _deaths(folder: Path, data: str, world_size: int, seed: int, kills: int = 10, **more: Any) -> list[str]:
    """Kills the run `kills` times, then lets it end; returns what was done."""
    draw = random.Random(seed)
    done: list[str] = []
    settings = _settings(folder, data, **more)
    for _ in range(kills):
        newest = newest_whole_checkpoint(folder)
        start = int(newest.name.split("-")[1]) if newest else 0
        if draw.random() < 0.5:
            point, step = draw.choice(chaos_run.SAVE_POINTS), start + SAVE * draw.choice((1, 1, 2))
        else:
            points = [
                point for point in chaos_run.STEP_POINTS if point != "substep" or "gradient_accumulation_steps" in more
            ]
            point, step = draw.choice(points), start + draw.randint(1, 2 * SAVE - 1)
        step = min(step, settings["max_steps"] - SAVE)
        victims = tuple(range(world_size)) if draw.random() < 0.5 else (draw.randrange(world_size),)
        if len(victims) < world_size and point.split()[-1] in ("publish_checkpoint", "rotate_checkpoints"):
            victims = (0,)  # the others do not come there
        codes = _launch(settings, world_size, victims, point, step)
        done.append(f"{point} of step {step}, from {start}, victims {victims}, exit codes {codes}")
        assert all(codes[rank] == -signal.SIGKILL for rank in victims), (done, _output(folder))
    codes = _launch(settings, world_size)
    assert codes == [0] * world_size, (done, _output(folder))
    return done


def test_one_process_killed_ten_times_ends_as_the_undisturbed_run(data: str, tmp_path: Path) -> None:
    whole = _undisturbed(tmp_path / "whole", data, 1, gradient_accumulation_steps=2)
    done = _deaths(tmp_path / "killed", data, 1, seed=1, gradient_accumulation_steps=2)
    print("\n".join(done))
    _assert_equal(whole, tmp_path / "killed", 1, 30)


def test_two_processes_with_workers_killed_end_as_the_undisturbed_run(data: str, tmp_path: Path) -> None:
    more = {"dataloader_num_workers": 2, "max_steps": 15}
    whole = _undisturbed(tmp_path / "whole", data, 2, **more)
    done = _deaths(tmp_path / "killed", data, 2, seed=29, kills=2, **more)  # one of them in a step; both in a save
    print("\n".join(done))
    _assert_equal(whole, tmp_path / "killed", 2, 15)
    first, second = (_diary(tmp_path / "killed", 2, rank) for rank in range(2))
    in_order = [key for step in range(15) for key in first[step] + second[step]]
    assert len(in_order) == 15 * 2 * 4
    assert set(in_order) == {f"{index:03d}.jpg" for index in range(50)}
    assert len(set(in_order[:40])) == 40  # of an epoch of 50 no image comes twice


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_with_the_same_images_of_each_step(
    before: int, after: int, data: str, tmp_path: Path
) -> None:
    """Two micro-batches of a step, on two processes or one after the other."""

    def settings(processes: int, steps: int) -> dict[str, Any]:
        accumulation = {"gradient_accumulation_steps": 2 // processes}
        return _settings(tmp_path / "changed", data, **accumulation, max_steps=steps)

    whole = _undisturbed(
        tmp_path / "whole",
        data,
        before,
        max_steps=12,
        gradient_accumulation_steps=2 // before,
    )
    assert _launch(settings(before, 6), before) == [0] * before, _output(tmp_path / "changed")
    assert _launch(settings(after, 12), after) == [0] * after, _output(tmp_path / "changed")
    diaries = [_diary(tmp_path / "changed", after, rank) for rank in range(after)]
    expected = [_diary(whole, before, rank) for rank in range(before)]
    for step in range(6, 12):
        ours, theirs = (sorted(key for diary in group for key in diary[step]) for group in (diaries, expected))
        assert ours == theirs
        assert len(ours) == 8
    assert all(min(diary) == 6 for diary in diaries)


def test_a_number_of_processes_that_would_change_the_steps_is_refused(data: str, tmp_path: Path) -> None:
    settings = _settings(tmp_path, data, max_steps=3, gradient_accumulation_steps=2)
    assert _launch(settings) == [0]
    assert _launch({**settings, "max_steps": 6}, 2) == [1, 1]
    assert (
        "checkpoint-3 was trained with other settings: batches of a step was 2 and is 4; resume with the same"
        in _output(tmp_path)
    )
    assert not list(tmp_path.glob("checkpoint-6"))
