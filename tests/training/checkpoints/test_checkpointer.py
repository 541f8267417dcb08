"""Checkpoints of a run: refused where settings differ, whole or absent, and not too many."""

from pathlib import Path
from typing import Any

import pytest

from hf_geossl import GTSAForPreTraining, GTSATrainer
from hf_geossl.training import trainer as trainer_module
from hf_geossl.training.checkpoints.files import CheckpointError, newest_whole_checkpoint
from tests.helpers.gtsa_run import make_trainer, small_arguments, small_config, small_views


def test_resume_with_another_model_views_or_accumulation_is_refused(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, save_steps=2).train()
    path = str(tmp_path / "checkpoint-2")
    with pytest.raises(CheckpointError, match="trained with other settings: batches of a step was 1 and is 2"):
        make_trainer(tmp_path, images, gradient_accumulation_steps=2).train(resume_from_checkpoint=path)
    with pytest.raises(CheckpointError, match="is of another model: rotation_weight was 0.5 and is 0.1"):
        make_trainer(tmp_path, images, rotation_weight=0.1).train(resume_from_checkpoint=path)
    other = GTSATrainer(
        GTSAForPreTraining(small_config()), small_arguments(tmp_path), images, views=small_views(num_local=1)
    )
    with pytest.raises(CheckpointError, match=r"trained with other settings: views\."):
        other.train(resume_from_checkpoint=path)


def test_interrupted_save_leaves_the_checkpoint_before(
    images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, images, save_steps=2)
    original = trainer_module.write_optimizer

    def fail(*args: Any) -> None:
        if trainer.state.global_step == 4:
            raise OSError("no space left on device")
        original(*args)

    monkeypatch.setattr(trainer_module, "write_optimizer", fail)
    with pytest.raises(
        CheckpointError, match="checkpoint-4 could not be written .no space left on device.: see to the"
    ):
        trainer.train()
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_old_checkpoints_go_and_the_newest_stay(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, max_steps=8, save_steps=2, save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    assert not (tmp_path / ".staging").exists()
