"""Training images varied: truth moves with what it is of, in an order that the seed gives."""

from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.tasks.finetuning.examples import Collator, TrainingExamples, draw_crop, vary

SIDE = 48


def _sample() -> dict[str, Any]:
    """A white rectangle on black: rows 6 to 29 and columns 12 to 35, in the image, both maps and a box."""
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[6:30, 12:36] = True
    return {
        "index": 3,
        "image": (255 * inside).to(torch.uint8).expand(3, SIDE, SIDE).clone(),
        "semantic": inside.to(torch.uint8),
        "depth": torch.where(inside, 2.0, 7.5),
        "boxes": torch.tensor([[12.0, 6.0, 36.0, 30.0]]),
        "categories": torch.tensor([1]),
    }


@pytest.mark.parametrize("seed", range(20))
def test_truth_moves_with_the_image(seed: int) -> None:
    varied = vary(_sample(), 32, 0.3, True, np.random.default_rng(seed))
    assert varied["image"].shape == (3, 32, 32)
    assert varied["image"].dtype == torch.uint8
    shown = varied["image"][0] > 127
    assert (shown == varied["semantic"].bool()).float().mean() > 0.93  # but for the edges, which are smoothed
    assert torch.equal(varied["depth"] == 2.0, varied["semantic"].bool())
    assert set(varied["depth"].unique().tolist()) <= {2.0, 7.5}
    if len(varied["boxes"]):
        rows, columns = torch.where(varied["semantic"].bool())
        expected = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert (varied["boxes"][0] - expected).abs().max() <= 1.5
        assert varied["categories"].tolist() == [1]
    else:
        assert varied["semantic"].float().sum() < 0.25 * 32 * 32


def test_without_crop_and_mirror_nothing_changes() -> None:
    sample = _sample()
    same = vary(sample, SIDE, 1.0, False, np.random.default_rng(0))
    for key in ("image", "semantic", "depth", "boxes", "categories"):
        assert torch.equal(same[key], sample[key])


def test_half_of_the_images_are_mirrored() -> None:
    sample = _sample()
    lefts = [vary(sample, SIDE, 1.0, True, np.random.default_rng(seed))["boxes"][0, 0].item() for seed in range(400)]
    assert set(lefts) == {12.0}  # this rectangle lies in the middle
    sample["boxes"][0, 2] = 30.0
    lefts = [vary(sample, SIDE, 1.0, True, np.random.default_rng(seed))["boxes"][0, 0].item() for seed in range(400)]
    assert set(lefts) == {12.0, SIDE - 30.0}
    assert 160 < lefts.count(12.0) < 240


def test_crops_have_the_share_of_the_area_that_was_drawn() -> None:
    generator = np.random.default_rng(0)
    crops = np.array([draw_crop(200, 0.3, generator) for _ in range(2000)])
    left, top, width, height = crops.T
    assert crops.min() >= 0
    assert (left + width).max() <= 200
    assert (top + height).max() <= 200
    shares = width * height / 200**2
    assert 0.27 < shares.min() < 0.32
    assert abs(shares.mean() - 0.64) < 0.02  # 0.65, less what does not fit
    assert (width / height).max() < 1.36


def test_examples_follow_from_the_seed_and_their_number() -> None:
    split: Any = [{"index": index, "image": torch.zeros(3, 4, 4, dtype=torch.uint8)} for index in range(5)]

    def drawn(seed: int, numbers: range) -> list[tuple[int, float]]:
        examples = TrainingExamples(split, 15, lambda sample, generator: {**sample, "drawn": generator.random()}, seed)
        assert len(examples) == 15
        return [(examples[number]["index"], examples[number]["drawn"]) for number in numbers]

    first = drawn(0, range(15))
    assert all(sorted(index for index, _ in first[start : start + 5]) == list(range(5)) for start in (0, 5, 10))
    assert len({index for _, index in first}) == 15
    assert [index for index, _ in first[:5]] != [index for index, _ in first[5:10]]
    assert drawn(0, range(7, 15)) == first[7:]  # a resumed run
    assert drawn(1, range(15)) != first


def test_images_are_normalised() -> None:
    collate = Collator(
        [0.5, 0.25, 0.0], [0.5, 0.5, 2.0], lambda samples: torch.tensor([one["index"] for one in samples])
    )
    made = collate([{"index": 7, "image": torch.full((3, 2, 2), 255, dtype=torch.uint8)}])
    assert made["labels"].tolist() == [7]
    torch.testing.assert_close(made["pixel_values"][0, :, 0, 0], torch.tensor([1.0, 1.5, 0.5]))
