"""SIGTERM from a scheduler: a checkpoint, and an exit code that it understands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_geossl.training.checkpoints.files import newest_whole_checkpoint
from tests.helpers.golden import ROOT
from tests.helpers.photographs import write_folder

pytestmark = pytest.mark.slow

SMALL = [
    "--image_size",
    "32",
    "--patch_size",
    "8",
    "--hidden_size",
    "32",
    "--num_hidden_layers",
    "2",
    "--num_attention_heads",
    "2",
    "--global_size",
    "32",
    "--local_size",
    "16",
    "--max_steps",
    "100000",
    "--save_steps",
    "100000",
    "--logging_steps",
    "1",
    "--per_device_train_batch_size",
    "4",
    "--use_cpu",
    "true",
    "--eval_dataset",
    "none",
    "--picture",
    "false",
]


def test_a_preempted_job_saves_and_says_so_by_its_exit_code(tmp_path: Path) -> None:
    """143 is 128 + SIGTERM. Of several processes the job of docs/many_gpus.md is stopped so, by tests/docs/test_pages.py."""
    data, run, log = write_folder(tmp_path / "images", 32), tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-m", "hf_geossl.cli", "pretrain", "quickstart", *SMALL]
    command += ["--dataset", str(data), "--output_dir", str(run), "--dataloader_num_workers", "2"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        )  # fmt: skip
    deadline = time.monotonic() + 120
    while "step 3:" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 143, log.read_text()[-2000:]
    saved = newest_whole_checkpoint(run)
    assert saved is not None
    assert len(list(saved.glob("run_state_*.json"))) == 1
    assert f"stopped at step {saved.name.split('-')[1]}. Go on with:" in log.read_text()
    assert not (run / ".staging").exists()
