"""Geometry of the fixed set's views, and what encoders that are known exactly reach in them."""

import numpy as np
import pytest
import torch

from hf_geossl.training.monitors.instruments import (
    Encoded,
    GeometricViews,
    LabelledImages,
    chance_levels,
    encode_thumbnail,
    matching_patches,
    measure,
)

PATCH, SIDE = 4, 24
CPU = torch.device("cpu")


def _images(count: int = 32) -> torch.Tensor:
    """A colour of its own in every patch, and a bright corner above on the left."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(count, 3, SIDE // PATCH, SIDE // PATCH, generator=generator) * 0.5
    patches[:, :, :3, :3] += 0.5
    return (255 * patches).round().to(torch.uint8).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


def _mean_colours(images: torch.Tensor) -> Encoded:
    means = torch.nn.functional.avg_pool2d(images, PATCH)  # (B, 3, rows, columns)
    return Encoded(torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1), means.permute(0, 2, 3, 1), {})


def test_an_enlarged_quarter_shows_what_its_patches_are_said_to() -> None:
    """Patches of one colour each: each patch of the quarter has the colour of the one that it is said to be."""
    images = (
        torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        .repeat_interleave(8, 2)
        .repeat_interleave(8, 3)
    )
    views, corners, same = GeometricViews(8).enlarged_quarter(images, torch.arange(16))
    assert sorted(corners.tolist()) == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    # away from the borders, which are blended
    inner = views.unflatten(2, (4, 8)).unflatten(4, (4, 8))[:, 0, :, 3, :, 3]
    whole = images[:, 0, ::8, ::8].flatten(1)
    for place in range(16):
        expected = whole[place][same[place]]
        assert (inner[place] - expected).abs().max() < 0.4  # bilinear: a patch is half of the one that it shows
        assert np.corrcoef(inner[place].flatten(), expected.flatten())[0, 1] > 0.9


def test_turns_are_counter_clockwise_and_even() -> None:
    images = _images(8)
    views, turns = GeometricViews(PATCH).mirrored_and_turned(images, torch.arange(8))
    assert turns.tolist() == [0, 1, 2, 3] * 2
    for image, view, turn in zip(images, views, turns.tolist(), strict=True):
        np.testing.assert_array_equal(view.permute(1, 2, 0), np.rot90(image.permute(1, 2, 0).numpy()[:, ::-1], turn))


def test_matching_patches_is_the_share_of_right_nearest_neighbours() -> None:
    keys = torch.eye(4).view(1, 2, 2, 4)
    same = torch.tensor([[[0, 1], [2, 3]]])
    assert matching_patches(keys, keys, same).tolist() == [1.0]
    assert matching_patches(keys.flip(1), keys, same).tolist() == [0.0]
    half = keys.clone()
    half[0, 0] = keys[0, 0].flip(0)
    assert matching_patches(half, keys, same).tolist() == [0.5]


def test_an_encoder_of_colours_knows_turns_and_correspondences() -> None:
    images = _images()
    numbers = measure(_mean_colours, images, PATCH, CPU, None)
    assert numbers["quarter_turn_accuracy"] == 1.0  # where the bright corner is
    assert numbers["correspondence_accuracy"] > 0.8
    blind = measure(lambda batch: Encoded(batch.mean(dim=(2, 3)), torch.ones(len(batch), batch.shape[-1] // PATCH, batch.shape[-1] // PATCH, 2), {}), images, PATCH, CPU, None)  # fmt: skip
    assert blind["quarter_turn_accuracy"] < 0.6
    assert blind["correspondence_accuracy"] == pytest.approx(1 / 36, abs=0.03)
    assert "knn_accuracy" not in numbers


def test_features_that_are_not_finite_are_not_measured_and_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(images: torch.Tensor) -> Encoded:
        encoded = _mean_colours(images)
        return Encoded(encoded.pooled / 0, encoded.patches, {})

    assert measure(broken, _images(4), PATCH, CPU, None) == {}
    assert caplog.messages == ["features are not measured: they are not finite"]


def test_labels_are_learned_and_chance_is_the_most_frequent_class() -> None:
    images, labels = _images(48), torch.arange(48) % 3
    images[:, 0] = 40 * labels[:, None, None].to(torch.uint8)
    labelled = LabelledImages("made", images[:24], labels[:24], images[24:], labels[24:], 3)
    numbers = measure(_mean_colours, labelled.images, PATCH, CPU, labelled)
    assert numbers["knn_accuracy"] > 0.75
    assert numbers["linear_accuracy"] > 0.75
    chances = chance_levels(SIDE, PATCH, labelled)
    assert chances == {
        "quarter_turn_accuracy": 0.25, "position_accuracy": 0.25, "correspondence_accuracy": 1 / 36,
        "knn_accuracy": 1 / 3, "linear_accuracy": 1 / 3,
    }  # fmt: skip


def test_thumbnails_are_means_of_areas() -> None:
    images = torch.rand(2, 3, 24, 24)
    encoded = encode_thumbnail(images, 8)
    assert encoded.pooled.shape == (2, 3 * 12 * 12)
    assert encoded.pooled[0, 0].item() == pytest.approx(images[0, 0, :2, :2].mean().item())
    assert encoded.patches.shape == (2, 3, 3, 3 * 16)
    first = images[1, :, 8:16, 16:24].unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean(dim=(2, 4)).flatten()
    torch.testing.assert_close(encoded.patches[1, 1, 2], first)
