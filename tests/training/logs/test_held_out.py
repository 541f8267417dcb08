"""Losses on held-out images: means over images of one pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.gtsa_run import make_trainer
from tests.helpers.inputs import evaluation_inputs


def test_evaluation_gives_the_pretraining_loss_of_one_pass(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, per_device_eval_batch_size=10)
    trainer.eval_dataset = None
    first = trainer.evaluate(images)["eval_loss"]
    assert trainer.evaluate(images)["eval_loss"] == first
    batches = list(trainer.get_eval_dataloader(images))
    assert [len(batch["crop_boxes"]) for batch in batches] == [10, 10, 4]
    trainer.model.eval()
    losses = [trainer.model(**evaluation_inputs(trainer, batch)).loss.item() for batch in batches]  # the final weights
    assert first == pytest.approx(np.average(losses, weights=[10, 10, 4]), abs=1e-5)  # over images
