"""The picture of LOCA: true and predicted places of patches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.training.pictures.colors import color_code
from hf_geossl.training.pictures.loca import PositionRow, draw_positions, find_positions, position_picture
from tests.helpers.loca_run import make_trainer


@pytest.fixture
def images(smooth_images: Any) -> Any:
    return smooth_images


def test_picture_shows_true_and_predicted_places(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images)
    pictures = [Image.fromarray(sample["image"]) for sample in images[:2]]
    before = torch.get_rng_state()
    picture = position_picture(trainer.model, trainer.views, pictures, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert trainer.model.training
    assert picture.size[0] > 1000
    assert position_picture(trainer.model, trainer.views, pictures, seed=3).tobytes() == picture.tobytes()
    batch = trainer.views.collate([trainer.views(image, seed=3 + i) for i, image in enumerate(pictures)])
    inputs = trainer.views.normalize(batch)
    for index, row in enumerate(find_positions(trainer.model, trainer.views, batch)):
        assert row.true in inputs["focal_query_positions"][index].tolist()
        with torch.no_grad():
            query = inputs["focal_query_positions"][index].tolist().index(row.true)
            logits = trainer.model.eval().predict_positions(
                inputs["reference_pixel_values"][index : index + 1],
                inputs["focal_query_pixel_values"][index : index + 1, query],
            )
        assert row.predicted == logits[0].argmax(dim=-1).tolist()


def test_picture_paints_each_patch_in_its_color_where_it_lies() -> None:
    """Four patches: in cells 5 and 6, outside, and in cell 5 too; the last is found in cell 15."""
    black = torch.zeros(3, 32, 32, dtype=torch.uint8)
    row = PositionRow(black, black, (0.25, 0.25, 0.75, 0.5), False, [5, 6, -1, 5], [5, 6, 3, 15], 4)
    assert (row.inside, row.right) == (3, 2)
    picture = np.array(draw_positions([row], "title"))
    colors = color_code(2).reshape(4, 3).numpy()
    panels = 10 + 262 * np.arange(4)
    top = 3 * 24 + 10

    def at(panel: int, x: float, y: float) -> np.ndarray:
        return picture[top + int(252 * y), panels[panel] + int(252 * x)]

    def like(pixel: np.ndarray, color: np.ndarray, share: float) -> bool:
        return bool(np.abs(pixel - share * color.astype(float)).max() < 3)

    for patch, (x, y) in enumerate([(0.3, 0.2), (0.7, 0.2), (0, 0), (0.7, 0.6)]):
        assert patch == 2 or like(at(1, x, y), colors[patch], 0.55)
    assert like(at(2, 0.30, 0.30), colors[0], 0.9)  # two share cell 5: one in the first quarter, one in the second
    assert like(at(2, 0.44, 0.30), colors[3], 0.9)
    assert like(at(2, 0.60, 0.40), colors[1], 0.9)
    assert like(at(3, 0.30, 0.40), colors[0], 0.9)
    assert like(at(3, 0.80, 0.95), colors[3], 0.9)
    assert not any(at(2, 0.8, 0.1)), "the patch that lies outside is painted nowhere"
    assert not any(at(3, 0.8, 0.1))
