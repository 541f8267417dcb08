"""The spread of features, and the contrast of the images that they are of."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_geossl.training.monitors.collapse import LITTLE_CONTRAST
from tests.helpers.gtsa_run import make_trainer


@pytest.mark.parametrize("share", [1, 1 / 30])
def test_probes_measure_the_contrast_inside_views(share: float, images: Any, tmp_path: Path) -> None:
    """In deviations of the normalisation, ImageNet's here, which is that of no single image."""
    grey = [{"image": (128 + (row["image"].astype(float) - 128) * share).astype("uint8")} for row in images]
    trainer = make_trainer(tmp_path, grey, max_steps=1, logging_steps=1, probe_every_steps=1)
    trainer.train()
    deviations = [(row["image"] / 255 / 0.225).std(axis=(0, 1)).mean() for row in grey]
    measured = trainer.parts.probes.contrast
    assert 0.3 < measured / (sum(deviations) / len(deviations)) < 2
    assert (measured < LITTLE_CONTRAST) == (share < 1)


def test_collapsed_teacher_has_no_spread(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=1, logging_steps=1, probe_every_steps=1)
    with torch.no_grad():
        trainer.model.teacher.gtsa.layernorm.weight.zero_()
        trainer.model.teacher.gtsa.layernorm.bias.fill_(1.0)
    trainer.train()
    assert trainer.state.log_history[0]["feature_spread"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.state.log_history[0]["target_spread"] < 0.5  # differs only by the position in the map
