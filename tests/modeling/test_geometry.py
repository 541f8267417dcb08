"""Boxes, quarter turns and RoI pooling against the authors' numbers, torchvision and torch.rot90."""

import pytest
import torch
from torchvision.ops import roi_align

from hf_geossl.modeling.geometry import overlap_boxes, roi_align_weights, turn_boxes, turn_cells
from tests.helpers.golden import golden_json


@pytest.mark.parametrize("case", range(50))
def test_overlap_boxes_equal_the_authors(case: int) -> None:
    record = golden_json("geometry.json")["cases"][case]
    num_global, num_local = record["nmb_crops"]
    sizes = [record["size_crops"][0]] * num_global + [record["size_crops"][1]] * num_local
    boxes, angles = torch.tensor(record["crop_boxes_xyxy"])[None], torch.tensor(record["angles"])[None]
    teacher, student = overlap_boxes(boxes, angles // 90, sizes, num_global)
    torch.testing.assert_close(teacher[0], torch.tensor(record["gc"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(student[0], torch.tensor(record["all"]), rtol=0, atol=1e-5)


def test_overlap_boxes_take_integers_a_tensor_of_sizes_and_any_number_of_globals() -> None:
    boxes = torch.tensor([[[0, 0, 100, 100], [20, 10, 120, 60], [50, 0, 90, 80]]])
    teacher, student = overlap_boxes(boxes, torch.zeros(1, 3, dtype=torch.long), torch.tensor([50, 100, 40]), 3)
    assert teacher.shape == (1, 3, 3, 4)
    assert student.shape == (1, 3, 3, 4)
    # by hand: the overlap of views 0 and 1 is [20, 10, 100, 60]; half as large in view 0, double in height in view 1
    assert teacher[0, 0, 1].tolist() == pytest.approx([10.0, 5.0, 50.0, 30.0])
    assert student[0, 1, 0].tolist() == pytest.approx([0.0, 0.0, 80.0, 100.0])


@pytest.mark.parametrize("turns", range(4))
def test_turned_boxes_hold_the_same_pixels(turns: int) -> None:
    picture = torch.zeros(12, 12)
    picture[2:5, 7:11] = 1.0  # x 7..11, y 2..5
    box = turn_boxes(torch.tensor([7.0, 2.0, 11.0, 5.0]), torch.tensor(turns), torch.tensor(12.0)).int().tolist()
    turned = torch.rot90(picture, turns, (0, 1))
    assert turned[box[1] : box[3], box[0] : box[2]].sum() == turned.sum() == 12


def test_overlap_boxes_refuse_wrong_shapes() -> None:
    boxes, turns = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="crop_boxes must have shape"):
        overlap_boxes(boxes[0], turns, [8, 8, 8], 1)
    with pytest.raises(ValueError, match="quarter_turns must have shape"):
        overlap_boxes(boxes, turns[:, :2], [8, 8, 8], 1)
    with pytest.raises(ValueError, match="crop_sizes must name"):
        overlap_boxes(boxes, turns, [8, 8], 1)
    with pytest.raises(ValueError, match="num_global must be between"):
        overlap_boxes(boxes, turns, [8, 8, 8], 4)


@pytest.mark.parametrize(
    ("height", "width", "output_size"), [(14, 14, 10), (14, 14, 4), (6, 6, 4), (9, 5, 7), (6, 6, 10), (1, 1, 2)]
)
def test_pooling_weights_equal_torchvisions_roi_align(height: int, width: int, output_size: int) -> None:
    generator = torch.Generator().manual_seed(output_size)
    maps = torch.randn(3, 5, height, width, generator=generator)
    corners = torch.rand(3, 40, 2, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    boxes[:, 0] = torch.tensor([0.0, 0.0, width, height])  # the whole map
    expected = roi_align(maps, list(boxes), output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=True)
    weights = roi_align_weights(boxes, output_size, height, width)
    pooled = weights @ maps.flatten(2).transpose(1, 2)[:, None]  # (3, 40, k * k, 5)
    pooled = pooled.transpose(-1, -2).unflatten(-1, (output_size, output_size)).flatten(0, 1)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=2e-6)


def test_cells_turn_as_rot90_each_by_its_own_turns() -> None:
    cells = torch.randn(2, 3, 25, 4, generator=torch.Generator().manual_seed(0))
    turns = torch.tensor([[0, 1, -1], [2, 3, -3]])
    turned = turn_cells(cells, turns)
    for batch in range(2):
        for view in range(3):
            grid = cells[batch, view].T.unflatten(1, (5, 5))
            expected = torch.rot90(grid, int(turns[batch, view]), (-2, -1)).flatten(1).T
            assert torch.equal(turned[batch, view], expected)
