"""Trunks are adapted to other channels, patches and sizes as the papers say, without a change of what they respond to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from torch.nn import functional as F

from hf_geossl.conversion.adaptation import adapt_channels, adapt_patch_size, adapt_source
from hf_geossl.conversion.source import read_source
from hf_geossl.conversion.trunk_weights import SourceTrunk, build_trunk
from tests.helpers.vit_families import TRANSFORMERS, features_of, images, relative_error

_FILTERS = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def respond(filters: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    return torch.einsum("dchw,bchw->bd", filters, patches)


@pytest.mark.parametrize(("words", "channels"), [("mean", 1), ("mean", 4), ("mean", 13), ("repeat", 6), ("repeat", 9)])
def test_grey_images_of_other_channels_give_the_same_response(words: str, channels: int) -> None:
    grey = torch.randn(4, 1, 8, 8)
    found = respond(adapt_channels(_FILTERS, channels, words), grey.expand(-1, channels, -1, -1))
    assert torch.allclose(found, respond(_FILTERS, grey.expand(-1, 3, -1, -1)), atol=1e-4)


def test_filters_of_channels_are_what_their_name_says() -> None:
    repeated = adapt_channels(_FILTERS, 4, "repeat")
    for channel, source in enumerate((0, 1, 2, 0)):
        assert torch.equal(repeated[:, channel], _FILTERS[:, source] * 0.75)
    mean = adapt_channels(_FILTERS, 4, "mean")
    assert torch.allclose(mean[:, 3], (_FILTERS[:, 0] + _FILTERS[:, 1] + _FILTERS[:, 2]) / 4, atol=1e-6)
    with pytest.raises(ValueError, match="channel_weights must be 'mean' or 'repeat', got 'sum'"):
        adapt_channels(_FILTERS, 4, "sum")


@pytest.mark.parametrize("size", [10, 14, 16])
def test_larger_patches_respond_to_enlarged_images_as_before(size: int) -> None:
    patches = torch.randn(4, 3, 8, 8)
    larger = F.interpolate(patches, size=(size, size), mode="bilinear", antialias=True)
    assert torch.allclose(respond(adapt_patch_size(_FILTERS, size), larger), respond(_FILTERS, patches), atol=1e-4)


@pytest.mark.parametrize("size", [4, 6, 14])
def test_patches_are_resampled_as_timm_does(size: int) -> None:
    expected = resample_patch_embed(_FILTERS, [size, size], interpolation="bilinear", antialias=True)
    assert torch.allclose(adapt_patch_size(_FILTERS, size), expected, atol=1e-4)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> SourceTrunk:
    folder: Path = tmp_path_factory.mktemp("dinov2")
    TRANSFORMERS["dinov2_with_registers"]().save_pretrained(folder)
    return replace(read_source(folder), name="somebody/dinov2")


def test_lines_say_what_was_done_and_the_source_stays(trunk: SourceTrunk) -> None:
    before: dict[str, Any] = dict(trunk.fields)
    adapted, lines = adapt_source(trunk, num_channels=6, channel_weights="repeat", patch_size=4, image_size=(24, 16))
    assert lines == [
        "somebody/dinov2 has 3 channels: its filters in turn in each of 6, times 3/6",
        "somebody/dinov2 has patches of 8 pixels: resampled to 4 by pseudo-inverse",
        "somebody/dinov2 has positions for 4 x 4 patches: resampled to 6 x 4",
    ]
    assert trunk.fields == before
    model = build_trunk(adapted)
    assert (model.config.num_channels, model.config.patch_size, model.config.image_size) == (6, 4, (24, 16))
    assert features_of(model, images(24, 16, 6)).shape == (2, 1 + 3 + 24, 128)
    same, lines = adapt_source(trunk, num_channels=3, patch_size=8, image_size=32)
    assert (lines, same.state, same.fields) == ([], trunk.state, trunk.fields)


def test_positions_for_another_size_are_those_that_the_trunk_resamples_itself(trunk: SourceTrunk) -> None:
    adapted, _ = adapt_source(trunk, image_size=(48, 24))
    pixels = images(48, 24)
    expected = features_of(build_trunk(trunk), pixels)
    assert relative_error(features_of(build_trunk(adapted), pixels), expected) < 1e-6
    table = trunk.state["embeddings.position_embeddings"]
    theirs = resample_abs_pos_embed(table, [6, 3], [4, 4], num_prefix_tokens=1)
    assert torch.allclose(adapted.state["embeddings.position_embeddings"], theirs, atol=1e-6)


def test_images_grow_with_their_patches(trunk: SourceTrunk) -> None:
    adapted, lines = adapt_source(trunk, patch_size=16)
    assert len(lines) == 1
    assert adapted.fields["image_size"] == 64
    pixels = images(32, 32)
    # enlarging within each patch alone, so that patches see nothing of their neighbours
    tiles = F.unfold(pixels, 8, stride=8).mT.reshape(-1, 3, 8, 8)
    tiles = F.interpolate(tiles, size=(16, 16), mode="bilinear", antialias=True)
    larger = F.fold(tiles.reshape(2, 16, -1).mT, (64, 64), 16, stride=16)
    expected = features_of(build_trunk(trunk), pixels)
    assert relative_error(features_of(build_trunk(adapted), larger), expected) < 1e-4


def test_sizes_that_do_not_fit_are_refused(trunk: SourceTrunk) -> None:
    with pytest.raises(ValueError, match="image_size must be a positive multiple of patch_size, got 36 and 8"):
        adapt_source(trunk, image_size=36)
    with pytest.raises(ValueError, match="num_channels must be at least 1, got 0"):
        adapt_source(trunk, num_channels=0)
