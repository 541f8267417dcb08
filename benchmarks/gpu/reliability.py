"""What a run on a GPU has to hold: fp16's scaler, a resume that is exact, one process over NCCL."""

import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.gpu.files import make_jpegs
from benchmarks.gpu.rows import Measurement, Row, Setup
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.exact_resume import different_weights

RUNS: dict[str, Callable[..., Any]] = {
    "gtsa": gtsa_run.make_trainer,
    "loca": loca_run.make_trainer,
    "equicoherent": equicoherent_run.make_trainer,
}


def trainer_of(setup: Setup, method: str, name: str, **fields: Any) -> Any:
    """A trainer of a small model, of the tests' size, on the device."""
    images = make_jpegs(setup.folder / "small", 24, (96, 72))
    output = setup.folder / f"{method}_{name}"
    if not fields.pop("goes_on", False):
        shutil.rmtree(output, ignore_errors=True)
    precision = {"bf16": True} if setup.cuda and not fields.get("fp16") else {}
    return RUNS[method](output, str(images), use_cpu=not setup.cuda, max_steps=6, **precision, **fields)


def fp16(setup: Setup) -> Iterator[Row]:
    """Whether losses are finite with a scaler, and a checkpoint has its state."""
    if not setup.cuda:
        yield {"failed": "not measured: a CPU has no fp16 here"}
        return
    trainer = trainer_of(setup, "gtsa", "fp16", fp16=True, save_steps=3, logging_steps=1)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    scaler = torch.load(Path(trainer.args.output_dir) / "checkpoint-3" / "scaler.pt", weights_only=True)
    scale = trainer.accelerator.scaler.get_scale()
    finite = bool(losses) and all(math.isfinite(loss) for loss in losses)
    yield {
        "losses": [round(loss, 4) for loss in losses],
        "scale": scale,
        "saved_scale": scaler["scale"],
        "holds": finite,
    }


def resume(method: str) -> Measurement:
    """Of a run that goes on from step 3: how many weights are not those of the run that was not stopped."""

    def rows(setup: Setup) -> Iterator[Row]:
        for name in ("as users run it", "deterministic"):
            torch.use_deterministic_algorithms(name == "deterministic", warn_only=True)
            whole = trainer_of(setup, method, "whole", save_steps=3)
            whole.train()
            again = trainer_of(setup, method, "whole", save_steps=3, goes_on=True)
            for checkpoint in Path(whole.args.output_dir).glob("checkpoint-6"):
                shutil.rmtree(checkpoint)
            again.train(resume_from_checkpoint=True)
            different = different_weights(whole.model, again.model)
            yield {name: f"{len(different)} of {len(whole.model.state_dict())} weights differ", "holds": not different}
        torch.use_deterministic_algorithms(False)

    return rows


PROCESS = """
import sys
from pathlib import Path
from benchmarks.gpu.rows import Setup
from benchmarks.gpu.reliability import trainer_of
trainer = trainer_of(Setup({device!r}, True, Path({folder!r}), 0.0), "gtsa", "process", ddp_backend={backend!r})
trainer.train()
trainer.save_model()
print("WRAPPED", type(trainer.model_wrapped).__name__, trainer.accelerator.state.backend)
trainer.end_processes()
"""


def one_process(setup: Setup) -> Iterator[Row]:
    """DDP with one process, over NCCL on a GPU: the weights of the run without it."""
    alone = trainer_of(setup, "gtsa", "alone")
    alone.train()
    alone.save_model()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = PROCESS.format(device=setup.device, folder=str(setup.folder), backend="nccl" if setup.cuda else "gloo")
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | launched,
        capture_output=True,
        text=True,
        timeout=max(1, min(60, setup.left)),
    )
    wrapped = [line for line in done.stdout.splitlines() if line.startswith("WRAPPED")]
    if done.returncode or not wrapped:
        raise RuntimeError((done.stdout + done.stderr)[-250:])
    first, second = (load_file(setup.folder / f"gtsa_{name}" / "model.safetensors") for name in ("alone", "process"))
    largest = max((first[name].float() - second[name].float()).abs().max().item() for name in first)
    yield {"wrapped": wrapped[0].removeprefix("WRAPPED "), "weights_off_by": largest, "holds": largest < 1e-6}


MEASUREMENTS: dict[str, Measurement] = {
    "fp16 scaler": fp16,
    "resume gtsa": resume("gtsa"),
    "resume loca": resume("loca"),
    "resume equicoherent": resume("equicoherent"),
    "one process": one_process,
}
