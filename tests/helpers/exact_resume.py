"""A run that is killed and resumed beside one that is not; and the program that is killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_geossl.training.checkpoints.files import newest_whole_checkpoint
from tests.helpers.forked import FORKSERVER
from tests.helpers.golden import ROOT
from tests.helpers.photographs import write_folder


class KillAt(TrainerCallback):
    """kill -9 at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(make_trainer: Callable[..., Any]) -> None:
    """What a method's `*_run.py SETTINGS_JSON` does."""
    _train_and_die(make_trainer, json.loads(sys.argv[1]))


def _train_and_die(make_trainer: Callable[..., Any], settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    make_trainer(**settings, callbacks=[KillAt(13)]).train()


def _forked(make_trainer: Callable[..., Any], settings: dict[str, Any]) -> int | None:
    """Trains in a process forked from one that has imported all, which takes seconds; gives its exit code."""
    process = FORKSERVER.Process(target=_train_and_die, args=(make_trainer, settings))
    process.start()
    process.join(240)
    return process.exitcode


def _started(script: Path, settings: dict[str, Any]) -> int:
    """Trains in a new process, which a loader's own processes need; gives its exit code."""
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(script), json.dumps(settings)]
    process = subprocess.run(command, env=environment, capture_output=True, check=False)
    print(process.stderr.decode()[-2000:])
    return process.returncode


def undisturbed_and_resumed(
    make_trainer: Callable[..., Any], folder: Path, workers: int, **more: Any
) -> tuple[Any, Any]:
    """
    Trains 20 steps, and again: 13 steps in a process that is killed, then on from step 10.

    The log's interval does not divide the save's; two micro-batches make a step. `more` goes to `make_trainer`, as JSON
    for the process that is killed.
    """
    script = Path(sys.modules[make_trainer.__module__].__file__ or "")
    settings = {
        "data": str(write_folder(folder / "images", 30)),
        "max_steps": 20,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": workers,
        "logging_steps": 3,
        "save_steps": 5,
        **more,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        undisturbed = make_trainer(folder / "undisturbed", **settings)
        undisturbed.train()
        killed = {"output_dir": str(folder / "killed"), **settings}
        assert (_forked(make_trainer, killed) if workers == 0 else _started(script, killed)) == -signal.SIGKILL
        newest = newest_whole_checkpoint(folder / "killed")
        assert newest is not None
        assert newest.name == "checkpoint-10"
        resumed = make_trainer(folder / "killed", **settings)
        resumed.train(resume_from_checkpoint=True)
    finally:
        torch.set_num_threads(threads)
    return undisturbed, resumed


def different_weights(first: torch.nn.Module, second: torch.nn.Module) -> list[str]:
    """Names of the weights whose bits differ."""
    expected, found = first.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    return [name for name, value in expected.items() if not torch.equal(value, found[name])]


def whole_and_resumed(make_trainer: Callable[..., Any], folder: Path, data: Any, **fields: Any) -> tuple[Any, Any]:
    """Trains six steps, and again from the checkpoint of the third, in this process."""
    settings = {"max_steps": 6, "save_steps": 3, "logging_steps": 2, "probe_every_steps": 0, **fields}
    whole = make_trainer(folder, data, **settings)
    whole.train()
    resumed = make_trainer(folder, data, **settings)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return whole, resumed
