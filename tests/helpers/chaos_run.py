"""
One process of a small run that kills itself at a given point, and writes down every image that it uses.

Called in a process that was forked (`run(...)`), or as a program: python chaos_run.py ARGUMENTS_AS_JSON.
"""

import contextlib
import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_geossl.training import trainer as trainer_module
from hf_geossl.training.checkpoints import checkpointer
from tests.helpers.gtsa_run import make_trainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Death(TrainerCallback):
    """kill -9 of this process at `point` of step `step`."""

    def __init__(self, point: str | None, step: int) -> None:
        self.point, self.step = point, step

    def at(self, point: str, state: Any) -> None:
        if point == self.point and state.global_step == self.step:
            die()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at("begin", state)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at("substep", state)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at("optimizer", state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at("end", state)


class Diary(TrainerCallback):
    """A line for each step: its images. Written through before the weights move."""

    def __init__(self, file: Path) -> None:
        self.file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        os.write(self.file, (json.dumps([state.global_step, self.trainer.parts.guard.keys]) + "\n").encode())


def kill_within_save(trainer: Any, point: str | None, step: int) -> None:
    """Points within the save of step `step`: before and after its parts and its rename."""

    def around(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            here = trainer.state.global_step == step
            if here and point == f"before {name}":
                die()
            result = original(*args, **kwargs)
            if here and point == f"after {name}":
                die()
            return result

        setattr(owner, name, call)

    for name in ("save_model", "_save_rng_state"):
        around(trainer, name)
    around(trainer_module, "write_optimizer")
    for name in ("publish_checkpoint", "rotate_checkpoints"):
        around(checkpointer, name)


SAVE_POINTS = (
    "before save_model", "after save_model", "after write_optimizer", "after _save_rng_state",
    "before publish_checkpoint", "after publish_checkpoint", "after rotate_checkpoints",
)  # fmt: skip
STEP_POINTS = ("begin", "substep", "optimizer", "end")


def run(settings: dict[str, Any], rank: int, world_size: int, port: int, point: str | None, step: int) -> None:
    """Trains one process to the end of the run or to its death; the last weights go to `final_RANK.pt`."""
    folder = Path(settings["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / f"output_{rank}.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    gc.freeze()  # what has been imported is no garbage
    if world_size > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({name: str(value) for name, value in {**places, "MASTER_PORT": port}.items()})
    diary = Diary(folder / f"diary_{world_size}_{rank}.jsonl")
    trainer = make_trainer(**settings, callbacks=[Death(point, step), diary])
    diary.trainer = trainer  # type: ignore[attr-defined]
    kill_within_save(trainer, point, step)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    optimizer = [dict(value) for value in trainer.optimizer.state_dict()["state"].values()]
    logs = [
        {
            name: value
            for name, value in line.items()
            if "second" not in name and name not in ("data_wait", "train_runtime")
        }
        for line in trainer.state.log_history
    ]
    torch.save({"model": trainer.model.state_dict(), "optimizer": optimizer, "logs": logs}, folder / f"final_{rank}.pt")
    with contextlib.suppress(Exception):
        trainer.end_processes()


if __name__ == "__main__":
    run(*json.loads(sys.argv[1]))
