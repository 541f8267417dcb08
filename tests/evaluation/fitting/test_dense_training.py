"""Random frames, windows and rows: truth stays with its pixels."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_geossl.evaluation.fitting import dense_training
from hf_geossl.evaluation.fitting.dense_training import DeviceColumn, random_frames, shuffled_rows, slide


def test_frames_at_scale_one_are_cut_out_or_mirrored() -> None:
    images = torch.randn(12, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(140, dtype=torch.uint8).view(1, 10, 14).expand(12, -1, -1)
    torch.manual_seed(0)
    frames, maps = random_frames(images, truth, 6, (1, 1), 255)
    places, mirrored = set(), 0
    for image, frame, found in zip(images, frames, maps, strict=True):
        row, column = divmod(int(found[0].min()), 14)
        expected_map, expected = (
            truth[0, row : row + 6, column : column + 6],
            image[:, row : row + 6, column : column + 6],
        )
        if found[0, 0] != found[0].min():
            expected_map, expected, mirrored = expected_map.flip(-1), expected.flip(-1), mirrored + 1
        assert torch.equal(found, expected_map)
        torch.testing.assert_close(frame, expected, rtol=0, atol=1e-5)
        places.add((row, column))
    assert len(places) > 6
    assert 0 < mirrored < 12


def test_frames_scale_an_image_and_its_truth_alike_and_know_nothing_outside() -> None:
    coarse = torch.randint(0, 5, (40, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    truth = F.interpolate(coarse.float(), (32, 32), mode="nearest")  # squares of 8 pixels
    torch.manual_seed(1)
    frames, maps = random_frames(truth.expand(-1, 3, -1, -1) + 1, truth[:, 0].to(torch.uint8), 32, (0.5, 2.0), 255)
    known = maps != 255
    assert maps.dtype == torch.uint8
    assert frames[:, 0][~known].abs().mean() < 0.1  # the outside is 0; edges are interpolated
    agree = (frames[:, 0][known] - 1 - maps[known]).abs() < 0.5
    assert agree.float().mean() > 0.9  # edges of squares are interpolated
    shares = known.float().mean(dim=(1, 2))
    assert shares.min() < 0.4  # scale 1/2 shows a quarter of the frame
    assert 0.2 < (shares == 1).float().mean() < 0.9


def test_windows_give_the_mean_of_all_that_hold_a_pixel() -> None:
    images = torch.randn(2, 3, 11, 8, generator=torch.Generator().manual_seed(2))
    seen: list[torch.Size] = []

    def predict(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape)
        return torch.cat(
            [part[:, :1] * 2, part.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 1, *part.shape[2:])], dim=1
        )

    found = slide(predict, images, 5, 3)
    assert set(seen) == {(2, 3, 5, 5)}
    torch.testing.assert_close(found[:, 0], images[:, 0] * 2)
    for y, x in ((0, 0), (4, 4), (10, 7), (6, 3)):
        windows = [(top, left) for top in (0, 3, 6) for left in (0, 3) if top <= y < top + 5 and left <= x < left + 5]
        assert windows
        expected = torch.stack([images[:, :, t : t + 5, s : s + 5].mean(dim=(1, 2, 3)) for t, s in windows]).mean(0)
        torch.testing.assert_close(found[:, 1, y, x], expected)
    seen.clear()
    slide(predict, images, 11, 11)
    assert seen == [(2, 3, 11, 8)]
    slide(predict, images, 9, 9)
    assert seen[1:] == [(2, 3, 9, 8)] * 2
    with pytest.raises(ValueError, match="stride must be in 1..5"):
        slide(predict, images, 5, 6)


def test_rows_come_once_a_pass_and_more_often_where_a_batch_is_larger() -> None:
    rows = shuffled_rows(10, 5, 0)
    passes = [np.concatenate([next(rows), next(rows)]) for _ in range(3)]
    assert all(sorted(part) == list(range(10)) for part in passes)
    assert not np.array_equal(passes[0], passes[1])
    assert sorted(next(shuffled_rows(3, 6, 0))) == [0, 0, 1, 1, 2, 2]


def test_a_column_too_large_for_the_device_is_read_row_by_row_with_the_same_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    column, rows = np.arange(210, dtype=np.float32).reshape(70, 3), np.array([69, 0, 33, 33])
    calls: list[int] = []

    def change(part: torch.Tensor) -> torch.Tensor:
        calls.append(len(part))
        return part * 2

    stored = DeviceColumn(column, torch.device("cpu"), change)
    before = len(calls)
    assert torch.equal(stored[rows], torch.from_numpy(column[rows] * 2))
    assert len(calls) == before  # changed once, when it was stored
    monkeypatch.setattr(dense_training, "MOST_STORED", column.nbytes - 1)
    read = DeviceColumn(column, torch.device("cpu"), change)
    assert torch.equal(read[rows], stored[rows])
    assert calls[-2:] == [1, 4]  # one row to know the size, and those that were asked for
