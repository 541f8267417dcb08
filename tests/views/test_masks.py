"""Block masks against the numbers of their laws, and against a plain drawing of rectangles on a board."""

import math
import time

import pytest
import torch

from hf_geossl.views import masks as block_masks
from hf_geossl.views.crops import make_random
from hf_geossl.views.masks import draw_block_masks

GRIDS = [(1, 1), (1, 2), (2, 2), (1, 40), (3, 7), (4, 4), (14, 14), (10, 21), (37, 37)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_on_a_board(draw, rows: int, columns: int, asked: float, smallest: float, largest: float):
    """The law in its plainest form: a list of cells, one rectangle after another. Returns cells and rectangles."""
    masked: set[tuple[int, int]] = set()
    rectangles = []
    while asked - len(masked) >= 1:
        limit = min(asked - len(masked), largest)
        for _ in range(10):
            area = smallest + draw() * (limit - smallest)
            aspect = math.exp(math.log(0.3) + draw() * (math.log(1 / 0.3) - math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (1 <= height <= rows - 1 and 1 <= width <= columns - 1):
                continue
            top, left = int(draw() * (rows - height + 1)), int(draw() * (columns - width + 1))
            cells = {(y, x) for y in range(top, top + height) for x in range(left, left + width)}
            if 0 < len(cells - masked) <= limit:
                masked |= cells
                rectangles.append((top, left, height, width))
                break
        else:
            break
    return masked, rectangles


def first_random(seed: int):
    """The numbers that `draw_block_masks` takes from a generator of this seed."""
    return make_random(int(torch.randint(2**63 - 1, (), generator=generator(seed)).item())).random


@pytest.mark.parametrize("kind", ["ibot", "dinov2"])
@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_masks_equal_rectangles_on_a_board(kind: str, rows: int, columns: int) -> None:
    drawn = draw_block_masks(kind, 40, rows, columns, generator(5))
    draw, patches = first_random(5), rows * columns
    if kind == "ibot":
        shares = [0.1 + draw() * 0.4 if draw() >= 0.5 else 0.0 for _ in range(40)]
        boards = [
            draw_on_a_board(draw, rows, columns, share * patches, (min(rows, columns) // 3) ** 2, patches)
            for share in shares
        ]
    else:
        shares = [0.1 + (i + draw()) * 0.4 / 20 for i in range(20)] + [0.0] * 20
        for i in range(39, 0, -1):
            j = int(draw() * (i + 1))
            shares[i], shares[j] = shares[j], shares[i]
        boards = [draw_on_a_board(draw, rows, columns, int(share * patches), 4, patches / 2) for share in shares]
    for mask, share, (cells, rectangles) in zip(drawn, shares, boards, strict=True):
        expected = torch.zeros(rows, columns, dtype=torch.bool)
        for top, left, height, width in rectangles:
            expected[top : top + height, left : left + width] = True
        assert len(cells) == expected.sum()
        assert torch.equal(mask.view(rows, columns), expected)
        assert mask.sum() <= share * patches  # never more than asked


def test_half_of_ibots_views_stay_whole_and_the_others_get_uniform_shares() -> None:
    masks = draw_block_masks("ibot", 20000, 14, 14, generator())
    assert masks.shape == (20000, 196)
    assert masks.dtype == torch.bool
    ratios = masks.float().mean(1)
    assert (ratios == 0).float().mean().item() == pytest.approx(0.5, abs=0.012)  # 3.4 standard deviations
    masked = ratios[ratios > 0]
    assert masked.max() <= 0.5
    # U(.1, .5) has mean .3 and standard deviation .4 / sqrt(12) = .115; what does not fit any more is a few patches
    assert 0.285 < masked.mean() <= 0.3 + 0.004
    assert masked.std().item() == pytest.approx(0.4 / math.sqrt(12), abs=0.005)
    assert masks.float().mean(0).view(14, 14).flip(0, 1).flatten().sub(masks.float().mean(0)).abs().max() < 0.02


def test_exactly_half_of_dinov2s_views_are_masked_each_from_a_slice_of_its_own() -> None:
    for count in (0, 1, 2, 7, 64, 501):
        masks = draw_block_masks("dinov2", count, 14, 14, generator(count))
        assert masks.shape == (count, 196)
        assert masks.any(1).sum() == math.floor(0.5 * count)
    masks = draw_block_masks("dinov2", 200, 14, 14, generator())
    sizes = masks.sum(1)[masks.any(1)].sort().values.double()
    asked = 196 * (0.1 + 0.4 * torch.arange(100, dtype=torch.float64) / 100)  # the lower ends of the slices
    assert (sizes <= asked + 196 * 0.4 / 100).all()
    # whole patches and what does not fit; a sorted list moves by no more than its entries
    assert (sizes >= asked - 1 - 12).all()
    assert (asked - sizes).mean() < 4
    frequency = torch.stack([draw_block_masks("dinov2", 10, 8, 8, generator(s)).any(1) for s in range(600)])
    assert (frequency.float().mean(0) - 0.5).abs().max() < 0.08  # any of the views


def test_a_first_block_is_one_rectangle_of_the_asked_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one rectangle a mask, what is masked is its own bounding box, of area and aspect in the bounds."""
    fill = block_masks._Blocks._add_block
    monkeypatch.setattr(block_masks._Blocks, "fill", lambda self, asked: fill(self, 0, asked) if asked else 0)
    for kind, smallest in (("ibot", (14 // 3) ** 2), ("dinov2", 4)):
        masks = draw_block_masks(kind, 4000, 14, 14, generator(1)).view(-1, 14, 14)
        masks = masks[masks.flatten(1).any(1)]
        heights, widths = masks.any(2).sum(1), masks.any(1).sum(1)
        areas = heights * widths
        assert torch.equal(masks.flatten(1).sum(1), areas)  # no holes, no second block
        for lines in (masks.any(2).int(), masks.any(1).int()):
            assert (lines.diff(dim=1).abs().sum(1) <= 2).all()  # one run of rows and of columns
        assert areas.max() <= 98
        # sides are rounded: at most half a patch each way
        assert ((heights + 0.5) * (widths + 0.5)).min() >= smallest
        assert ((heights - 0.5) / (widths + 0.5)).max() <= 1 / 0.3
        assert ((heights + 0.5) / (widths - 0.5)).min() >= 0.3
        assert abs((heights > widths).float().mean() - (heights < widths).float().mean()) < 0.06


@pytest.mark.parametrize("kind", ["ibot", "dinov2"])
def test_the_generator_alone_decides_and_gives_one_number(kind: str) -> None:
    source = generator(2)
    first = draw_block_masks(kind, 30, 14, 14, source)
    torch.manual_seed(9)
    assert torch.equal(first, draw_block_masks(kind, 30, 14, 14, generator(2)))
    assert not torch.equal(first, draw_block_masks(kind, 30, 14, 14, generator(3)))
    other = generator(2)
    torch.randint(2**63 - 1, (), generator=other)
    assert torch.equal(source.get_state(), other.get_state())


@pytest.mark.parametrize("kind", ["ibot", "dinov2"])
def test_masks_of_a_large_batch_cost_milliseconds(kind: str) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        draw_block_masks(kind, 512, 14, 14, generator())
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.06  # 3 ms alone on a core


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("beit", 2, 4, 4), "kind must be 'ibot' or 'dinov2', got 'beit'"),
        (("ibot", -1, 4, 4), "num_images must be 0 or more, got -1"),
        (("ibot", 2, 0, 4), "rows and columns must be at least 1, got 0 and 4"),
    ],
)
def test_wrong_arguments_are_named(wrong: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_block_masks(*wrong)
