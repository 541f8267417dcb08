"""LOCA's query positions against the authors' maps and against the maps written out in full."""

import numpy as np
import pytest
import torch

from hf_geossl.modeling.geometry import batched_query_positions, query_positions
from tests.helpers.golden import golden_json

RECORD = golden_json("geometry.json", "loca")
DRAWS = [(14, draw) for draw in RECORD["draws"]] + [(8, draw) for draw in RECORD["draws_8x8_64px_patch8"]]


def corners(record):
    return [record["x"], record["y"], record["x"] + record["w"], record["y"] + record["h"]]


@pytest.mark.parametrize("number", range(len(DRAWS)))
def test_positions_equal_the_authors_bit_for_bit(number):
    reference_grid, draw = DRAWS[number]
    reference = draw["reference"]
    for query in draw["queries"]:
        ours = query_positions(
            corners(reference),
            corners(query),
            query_size=query["resolution"],
            query_grid=query["grid"],
            reference_grid=reference_grid,
            reference_flipped=reference["flip"],
            query_flipped=query["flip"],
        )
        assert ours.dtype == torch.int64
        assert ours.tolist() == np.ravel(query["target"]).tolist()


def test_batched_positions_equal_the_authors_bit_for_bit():
    draws = RECORD["draws"]
    references = torch.tensor([corners(draw["reference"]) for draw in draws])
    flips = torch.tensor([draw["reference"]["flip"] for draw in draws])
    assert 0 < flips.sum() < len(flips)
    for size, grid in ((224, 14), (96, 6)):
        queries = [[query for query in draw["queries"] if query["resolution"] == size] for draw in draws]
        for kind in (torch.int64, torch.float32):  # as crop_boxes carries them
            ours = batched_query_positions(
                references.to(kind),
                torch.tensor([[corners(query) for query in row] for row in queries]).to(kind),
                query_size=size,
                query_grid=grid,
                reference_flips=flips,
                query_flips=torch.tensor([[query["flip"] for query in row] for row in queries]),
            )
            assert ours.tolist() == [[np.ravel(query["target"]).tolist() for query in row] for row in queries]


def resize_nearest(grid, height, width):
    """Half-pixel nearest neighbour by loops over numpy's float32."""

    def source(index, length_in, length_out):
        ratio = np.float32(length_in) / np.float32(length_out)
        return min(int(np.floor(np.float32(index + 0.5) * ratio)), length_in - 1)

    rows = [source(index, grid.shape[0], height) for index in range(height)]
    columns = [source(index, grid.shape[1], width) for index in range(width)]
    return grid[np.ix_(rows, columns)]


def positions_by_map(reference, query, image, query_size, query_grid, reference_grid, reference_flipped, query_flipped):
    """The map of the whole image: reference cells in their place, -1 elsewhere; cropped, resized twice, mirrored."""
    width, height = image
    cells = np.arange(reference_grid**2).reshape(reference_grid, reference_grid)
    if reference_flipped:
        cells = cells[:, ::-1]
    owner = np.full((height, width), -1)
    x1, y1, x2, y2 = reference
    owner[y1:y2, x1:x2] = resize_nearest(cells, y2 - y1, x2 - x1)
    x1, y1, x2, y2 = query
    seen = resize_nearest(resize_nearest(owner[y1:y2, x1:x2], query_size, query_size), query_grid, query_grid)
    return seen[:, ::-1] if query_flipped else seen


def random_box(rng, width, height):
    (x1, x2), (y1, y2) = (np.sort(rng.integers(0, side, 2)).tolist() for side in (width, height))
    return [x1, y1, x2 + 1, y2 + 1]


def test_positions_equal_the_map_of_the_whole_image_for_any_box_and_size():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(600):
        width, height = (int(side) for side in rng.integers(1, 260, 2))
        reference, query = random_box(rng, width, height), random_box(rng, width, height)
        settings = {
            "query_grid": int(rng.integers(1, 15)),
            "reference_grid": int(rng.integers(1, 17)),
            "reference_flipped": bool(rng.integers(2)),
            "query_flipped": bool(rng.integers(2)),
        }
        settings["query_size"] = settings["query_grid"] * int(rng.integers(1, 17)) + int(rng.integers(3))
        expected = positions_by_map(reference, query, (width, height), **settings)
        ours = query_positions(reference, query, **settings)
        assert ours.tolist() == expected.ravel().tolist(), (reference, query, settings)
        found.append(ours)
    shares = torch.stack([(positions < 0).float().mean() for positions in found])
    assert 0.2 < shares.mean() < 0.9  # both sides of the edge were tried


def test_the_batched_form_equals_the_single_one():
    rng = np.random.default_rng(1)
    references = [random_box(rng, 500, 375) for _ in range(6)]
    queries = [[random_box(rng, 500, 375) for _ in range(5)] for _ in range(6)]
    reference_flips, query_flips = rng.integers(2, size=6).astype(bool), rng.integers(2, size=(6, 5)).astype(bool)
    sizes = {"query_size": 96, "query_grid": 6}
    ours = batched_query_positions(
        torch.tensor(references),
        torch.tensor(queries),
        **sizes,
        reference_flips=torch.from_numpy(reference_flips),
        query_flips=torch.from_numpy(query_flips),
    )
    assert ours.shape == (6, 5, 36)
    for b in range(6):
        for q in range(5):
            flipped = {"reference_flipped": reference_flips[b], "query_flipped": query_flips[b, q]}
            assert torch.equal(ours[b, q], query_positions(references[b], queries[b][q], **sizes, **flipped))
    assert torch.equal(
        batched_query_positions(torch.tensor(references), torch.tensor(queries), **sizes)[2, 3],
        query_positions(references[2], queries[2][3], **sizes),
    )


def test_a_view_finds_itself_and_its_mirror_image():
    box, grid = [10, 20, 234, 244], torch.arange(196).view(14, 14)
    sizes = {"query_size": 224, "query_grid": 14}
    assert torch.equal(query_positions(box, box, **sizes).view(14, 14), grid)
    assert torch.equal(query_positions(box, box, **sizes, query_flipped=True).view(14, 14), grid.flip(1))
    assert torch.equal(query_positions(box, box, **sizes, reference_flipped=True).view(14, 14), grid.flip(1))
    assert (query_positions(box, [234, 20, 300, 60], **sizes) == -1).all()


def test_positions_wait_for_no_device():
    # Tensors on "meta" refuse to tell their values.
    boxes = torch.zeros(3, 4, device="meta")
    out = batched_query_positions(
        boxes,
        torch.zeros(3, 2, 4, device="meta"),
        query_size=96,
        query_grid=6,
        reference_flips=torch.zeros(3, dtype=torch.bool, device="meta"),
        query_flips=torch.zeros(3, 2, dtype=torch.bool, device="meta"),
    )
    assert (out.device.type, out.dtype, out.shape) == ("meta", torch.int64, (3, 2, 36))


def test_no_queries_give_no_positions():
    out = batched_query_positions(torch.tensor([[0, 0, 9, 9]]), torch.zeros(1, 0, 4), query_size=96, query_grid=6)
    assert out.shape == (1, 0, 36)


@pytest.mark.parametrize(
    ("reference", "query", "settings", "message"),
    [
        ([0, 0, 9], [0, 0, 9, 9], {}, "reference_box must hold x1, y1, x2, y2, got \\[0, 0, 9\\]"),
        ([0, 0, 9, 9], [0, 5, 9, 5], {}, "query_box must be x1, y1, x2, y2 with x1 < x2 and y1 < y2"),
        ([0, 0.5, 9, 9], [0, 0, 9, 9], {}, "reference_box must hold whole pixels"),
        ([0, 0, 9, 9], [0, 0, 9, 9], {"query_grid": 0}, "query_grid must be at least 1, got 0"),
        ([0, 0, 9, 9], [0, 0, 9, 9], {"reference_grid": 0}, "reference_grid must be at least 1, got 0"),
        ([0, 0, 9, 9], [0, 0, 9, 9], {"query_size": 5}, "query_size must be at least query_grid = 6 pixels, got 5"),
    ],
)
def test_wrong_arguments_are_named(reference, query, settings, message):
    with pytest.raises(ValueError, match=message):
        query_positions(reference, query, **{"query_size": 96, "query_grid": 6, **settings})


@pytest.mark.parametrize(
    ("references", "queries", "flips", "message"),
    [
        (torch.ones(4), torch.ones(1, 1, 4), {}, "reference_boxes must have shape \\(batch, 4\\), got \\(4,\\)"),
        (torch.ones(2, 4), torch.ones(2, 4), {}, "query_boxes must have shape \\(2, queries, 4\\)"),
        (torch.ones(2, 4), torch.ones(3, 1, 4), {}, "query_boxes must have shape \\(2, queries, 4\\)"),
        (torch.ones(2, 4), torch.ones(2, 1, 4), {}, "reference_boxes must be x1, y1, x2, y2 with x1 < x2"),
        (torch.ones(2, 4), torch.ones(2, 1, 4), {"reference_flips": torch.ones(1)}, "reference_flips must have shape"),
        (
            torch.ones(2, 4),
            torch.ones(2, 1, 4),
            {"query_flips": torch.ones(2)},
            "query_flips must have shape \\(2, 1\\)",
        ),
    ],
)
def test_wrong_shapes_are_named(references, queries, flips, message):
    with pytest.raises(ValueError, match=message):
        batched_query_positions(references, queries, query_size=96, query_grid=6, **flips)


def test_boxes_of_any_kind_of_integer_give_the_same() -> None:
    expected = query_positions((10, 20, 110, 90), (30, 5, 80, 60), query_size=96, query_grid=6)
    for kind in (np.uint16, np.uint8, np.int64, np.float32):
        reference, query = np.array((10, 20, 110, 90), dtype=kind), np.array((30, 5, 80, 60), dtype=kind)
        assert torch.equal(query_positions(reference, query, query_size=96, query_grid=6), expected)
