"""The picture of GTSA: turned crops, and the same set upright."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_geossl.training.pictures.gtsa import TurnedCrops, draw_turns, predict_turns, turn_picture
from tests.helpers.gtsa_run import make_trainer


def test_a_crop_is_turned_back_by_what_is_predicted(smooth_images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, smooth_images)
    pictures = [Image.fromarray(sample["image"]) for sample in smooth_images[:4]]
    before = torch.get_rng_state()
    turn_picture(trainer.model, trainer.views, pictures, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert trainer.model.training
    batch = trainer.views.collate([trainer.views(image, seed=3 + i) for i, image in enumerate(pictures)])
    turns = predict_turns(trainer.model, trainer.views, batch)
    inputs = trainer.views.normalize(batch)
    with torch.no_grad():
        logits = trainer.model.eval()(**inputs).rotation_logits[:, 0]
    assert turns.predicted.tolist() == logits.argmax(dim=-1).tolist()
    for index, crop in enumerate(batch["global_crops"][:, 0]):
        true, predicted = int(batch["quarter_turns"][index, 0]), int(turns.predicted[index])
        assert torch.equal(turns.crops[index], crop.rot90(true, (1, 2)))
        assert torch.equal(turns.set_upright()[index], crop.rot90(true - predicted, (1, 2)))
        assert bool(turns.right[index]) == torch.equal(turns.set_upright()[index], crop)


def test_right_and_wrong_are_framed_and_counted() -> None:
    crops = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    crops[:, :, 0] = 255  # a bright line above, before it is turned
    true, predicted = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2])
    seen = torch.stack([crop.rot90(int(turn), (1, 2)) for crop, turn in zip(crops, true, strict=True)])
    drawn = np.array(draw_turns(TurnedCrops(seen, true, predicted), "title"))
    top, bottom = 3 * 22 + 8, 3 * 22 + 8 + 136
    assert [drawn[bottom + 1, 8 + 136 * i + 64].tolist() for i in range(3)] == [[0, 121, 107]] * 2 + [[198, 40, 40]]
    assert drawn[bottom + 7, 8 + 64].min() > 150  # set upright, the line lies above
    assert drawn[top + 64, 8 + 136 + 2].min() > 150  # turned counter-clockwise, above is on the left
    assert drawn[bottom + 64, 8 + 2 * 136 + 7].min() > 150  # 3 - 2 quarters are left: it lies on the left
