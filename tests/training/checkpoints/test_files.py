"""Files of checkpoints: which are whole, and which a model can go on from."""

import logging
from pathlib import Path
from typing import Any

import pytest

from hf_geossl.training.checkpoints.files import CheckpointError, newest_whole_checkpoint
from tests.helpers.gtsa_run import make_trainer


def test_truncated_newest_checkpoint_is_passed_over(
    images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path, images, save_steps=2).train()
    file = tmp_path / "checkpoint-4" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert "checkpoint-4 is passed over: optimizer.pt has" in caplog.text
    with pytest.raises(CheckpointError, match="checkpoint-4 is not whole: optimizer.pt"):
        make_trainer(tmp_path, images).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_checkpoint_of_another_method_or_data_is_refused(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, save_steps=4).train()
    with pytest.raises(ValueError, match="rows"):
        make_trainer(tmp_path, images[:20], max_steps=8).train(resume_from_checkpoint=True)
    config = tmp_path / "checkpoint-4" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"model_type": "gtsa"', '"model_type": "loca"'))
    with pytest.raises(CheckpointError, match="checkpoint of 'loca', and the model to train is 'gtsa'"):
        make_trainer(tmp_path, images, max_steps=8).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        make_trainer(tmp_path / "empty", images).train(resume_from_checkpoint=True)


def test_checkpoint_of_weights_alone_is_not_resumed(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, save_steps=2, save_only_model=True).train()
    with pytest.raises(CheckpointError, match="checkpoint-2 holds no optimizer.*save_only_model"):
        make_trainer(tmp_path, images).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
