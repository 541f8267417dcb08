"""Checkpoints on a disk that fills up, and those that stay when there are too many: nothing that was there is lost."""

import contextlib
import ctypes
import json
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerCallback, set_seed

from hf_geossl import GTSAForPreTraining, GTSATrainer
from hf_geossl.training.checkpoints.files import (
    CheckpointError,
    list_checkpoints,
    newest_whole_checkpoint,
    why_not_whole,
)
from tests.helpers import forked
from tests.helpers.exact_resume import different_weights
from tests.helpers.gtsa_run import make_trainer, small_arguments, small_config, small_views

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"image": generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)} for _ in range(24)]


@pytest.fixture(scope="module")
def checkpoint_size(images: Any, tmp_path_factory: pytest.TempPathFactory) -> int:
    folder = tmp_path_factory.mktemp("size")
    make_trainer(folder, images, max_steps=2, save_steps=1).train()
    return sum(file.stat().st_size for file in (folder / "checkpoint-1").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Any]:
    """Mounts a tmpfs of so many bytes; its contents go with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(size: int) -> Path:
        if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, f"size={size}".encode()) != 0:
            pytest.skip(f"this process may not mount a tmpfs ({os.strerror(ctypes.get_errno())})")
        mounted.append(place)
        return place

    yield mount
    for path in mounted:
        libc.umount2(bytes(path), 2)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class _FreeAt(TrainerCallback):
    """Fills the disk up to what a save needs after one step, and deletes the filling after another."""

    def __init__(self, ballast: Path, fill: int, free: int, left: int) -> None:
        self.ballast, self.fill, self.free, self.left = ballast, fill, free, left
        self.seen: dict[int, list[str]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen[state.global_step] = sorted(path.name for path in Path(args.output_dir).iterdir())
        if state.global_step == self.fill:
            free = os.statvfs(self.ballast.parent)
            self.ballast.write_bytes(b"x" * max(0, free.f_bavail * free.f_bsize - self.left))
        elif state.global_step == self.free:
            self.ballast.unlink()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
def test_a_full_disk_costs_the_save_and_nothing_else(
    share: float, images: Any, tmp_path: Path, small_disk: Any, checkpoint_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Room for a share of a checkpoint: model, optimizer or the last small file does not fit."""
    disk = small_disk(12 * checkpoint_size)
    run = disk / "run"
    settings = {"max_steps": 8, "save_steps": 2, "logging_steps": 2}
    undisturbed = make_trainer(tmp_path / "undisturbed", images, **settings)
    undisturbed.train()
    filler = _FreeAt(disk / "ballast", fill=3, free=7, left=int(share * checkpoint_size))
    trainer = make_trainer(run, images, [filler], **settings)
    before: dict[str, bytes] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                before.update(_contents(run / "checkpoint-2"))

    trainer.add_callback(Keep())
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert _contents(run / "checkpoint-2") == before
    assert len(before) > 8
    assert filler.seen[5] == filler.seen[7] == ["checkpoint-2"]  # no debris
    assert trainer.parts.checkpointer.failed == 2
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-2", "checkpoint-8"]
    assert why_not_whole(run / "checkpoint-8") is None
    assert different_weights(undisturbed.model, trainer.model) == []
    assert [entry.get("failed_saves") for entry in trainer.state.log_history if "loss" in entry] == [None, None, 1, 2]
    messages = [r.getMessage() for r in caplog.records if "was not saved" in r.getMessage()]
    assert [message.split()[0] for message in messages] == ["checkpoint-4", "checkpoint-6"]
    assert "the disk of the output folder is full: " in messages[0]
    assert "MB are free, checkpoint-2, which is whole, takes" in messages[0]


def test_a_stop_that_cannot_be_saved_says_so_and_leaves_what_was_there(
    images: Any, tmp_path: Path, small_disk: Any, checkpoint_size: int
) -> None:
    disk = small_disk(12 * checkpoint_size)
    trainer = make_trainer(disk / "run", images, max_steps=9, save_steps=2)

    class Stop(_FreeAt):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                trainer.parts.preemption.receive(15)

    trainer.add_callback(Stop(disk / "ballast", fill=3, free=-1, left=checkpoint_size // 2))
    with pytest.raises(CheckpointError, match=r"checkpoint-5 was not saved.*is full.*Make room, then resume from the"):
        trainer.train()
    assert sorted(path.name for path in (disk / "run").iterdir()) == ["checkpoint-2"]
    (disk / "ballast").unlink()
    assert make_trainer(disk / "run", images, max_steps=9).train(resume_from_checkpoint=True).global_step == 9


@contextlib.contextmanager
def _longest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files_is_a_lack_of_space(images: Any, tmp_path: Path) -> None:
    """Where a tmpfs may not be mounted: the system refuses every file above 100 kB."""
    trainer = make_trainer(tmp_path, images, max_steps=4, save_steps=2)
    save, limited = trainer._save_checkpoint, [True]

    def save_within_limit(*args: Any) -> None:
        with _longest_file(100_000) if limited.pop() else contextlib.nullcontext():
            save(*args)
        limited.append(False)

    trainer._save_checkpoint = save_within_limit
    trainer.train()
    assert trainer.parts.checkpointer.failed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


TWO = """
import errno, json, sys
from pathlib import Path
from tests.helpers.gtsa_run import make_trainer
folder, data = sys.argv[1:]
trainer = make_trainer(folder, data, max_steps=6, save_steps=2, logging_steps=2)
rank = trainer.args.process_index
save = trainer.parts.state_dict
def state_dict():
    if rank == 1 and trainer.state.global_step == 4:
        raise OSError(errno.ENOSPC, "No space left on device")
    return save()
trainer.parts.state_dict = state_dict
trainer.train()
result = [trainer.parts.checkpointer.failed, trainer.state.global_step]
Path(folder).with_name(f"result-{rank}.json").write_text(json.dumps(result))  # two processes' lines of stdout may mix
trainer.end_processes()
"""


def test_a_full_disk_of_one_process_gives_up_the_save_of_both(tmp_path: Path) -> None:
    from tests.helpers.photographs import write_folder

    data = write_folder(tmp_path / "images", 48)
    forked.run(TWO, str(tmp_path / "run"), str(data), output=tmp_path / "output.txt", world_size=2)
    assert [json.loads((tmp_path / f"result-{rank}.json").read_text()) for rank in range(2)] == [[1, 6], [1, 6]]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-2", "checkpoint-6"]


# ------------------------------------------------------------------------------------------------- what is kept


class _Scores(TrainerCallback):
    """Gives evaluations the losses of a list."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def attach(self, trainer: GTSATrainer) -> GTSATrainer:
        evaluate = trainer.evaluate

        def evaluate_as_told(*args: Any, **kwargs: Any) -> dict[str, float]:
            return {**evaluate(*args, **kwargs), "eval_loss": self.losses[trainer.state.global_step // 2 - 1]}

        trainer.evaluate = evaluate_as_told
        return trainer


def _judged(folder: Path, images: Any, losses: list[float], **fields: Any) -> GTSATrainer:
    set_seed(0)
    arguments = {"max_steps": 8, "save_steps": 2, "eval_steps": 2, "eval_strategy": "steps", **fields}
    trainer = GTSATrainer(
        GTSAForPreTraining(small_config()),
        small_arguments(folder, **arguments),
        images,
        images[:4],
        views=small_views(),
    )
    return _Scores(losses).attach(trainer)


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("load_best", [False, True])
def test_the_best_and_the_last_stay_whatever_the_limit(
    limit: int, load_best: bool, images: Any, tmp_path: Path
) -> None:
    best = {} if not load_best else {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    losses = [3.0, 1.0, 2.0, 4.0]
    trainer = _judged(tmp_path, images, losses, save_total_limit=limit, **best)
    trainer.train()
    kept = ["checkpoint-4", "checkpoint-8"] if load_best else ["checkpoint-6", "checkpoint-8"][-limit:]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == kept
    assert all(why_not_whole(path) is None for path in list_checkpoints(tmp_path))
    if load_best:
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
        saved = GTSAForPreTraining.from_pretrained(tmp_path / "checkpoint-4")
        assert different_weights(trainer.model, saved) == []
        longer = _judged(tmp_path, images, [*losses, 5.0, 6.0], save_total_limit=limit, **best, max_steps=12)
        longer.train(resume_from_checkpoint=True)  # the best is still known
        assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-4"]


def test_a_best_step_that_could_not_be_saved_is_not_the_best_checkpoint(images: Any, tmp_path: Path) -> None:
    trainer = _judged(
        tmp_path, images, [3.0, 1.0, 2.0, 4.0], save_total_limit=1, load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )  # fmt: skip
    save = trainer._save_rng_state

    def fail(folder: str) -> None:
        save(folder)
        if trainer.state.global_step == 4:
            raise OSError(28, "No space left on device")

    trainer._save_rng_state = fail
    trainer.train()
    assert trainer.parts.checkpointer.failed == 1
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-8"]
