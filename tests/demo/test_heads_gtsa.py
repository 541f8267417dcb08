"""The rotation head in the demo, beside the pretraining model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.demo import heads_gtsa as heads
from hf_geossl.demo.loading import DemoModel, open_model
from hf_geossl.demo.pictures import read_upload
from tests.helpers.demo_models import FORMATS, encoded, model_of, noise, normalized, pixels, save, whole_model


def test_turn_probabilities_are_those_of_the_pretraining_model(opened: dict[str, DemoModel]) -> None:
    model, picture = opened["gtsa"], noise(4)
    boxes = torch.tensor([[[0.0, 0, 32, 32]]])
    for quarter in range(4):
        turned = Image.fromarray(np.rot90(np.array(picture), quarter).copy())
        with torch.no_grad():
            views = pixels(turned)[None]
            logits = model.whole(views, crop_boxes=boxes, quarter_turns=torch.tensor([[quarter]])).rotation_logits
        expected = logits[0, 0].softmax(-1).tolist()
        assert heads.turn_probabilities(model, picture, quarter) == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(np.array(heads.turned(picture, quarter)), np.array(turned))


def test_a_model_that_sees_no_squares_says_that_it_cannot_turn_them(tmp_path: Path) -> None:
    model = open_model(save(whole_model("gtsa", image_size=(32, 48)), tmp_path))
    assert "48 x 32 pixels, which no quarter turn leaves so" in str(heads.why_not_shown(model))


@pytest.mark.parametrize("kind", FORMATS)
def test_other_images_are_turned_with_all_channels(kind: str, tmp_path: Path) -> None:
    model = model_of("gtsa", kind, tmp_path)
    picture = read_upload(encoded(kind), FORMATS[kind])
    with torch.no_grad():
        pooled = model.whole.gtsa(normalized(kind).rot90(1, (2, 3))).pooler_output
        expected = model.whole.rotation_head(pooled)[0].softmax(-1).tolist()
    assert heads.turn_probabilities(model, picture, 1) == pytest.approx(expected, abs=1e-4)
