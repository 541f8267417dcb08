"""Evaluation of models whose images are not RGB of 8 bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl import GTSAConfig, GTSAModel, evaluate_model
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.pictures.drawing import in_colours
from hf_geossl.evaluation.samples import load_samples
from hf_geossl.modeling.image_format import TYPE_RANGES, ImageFormat


def format_of(channels: int, dtype: str) -> ImageFormat:
    numbers = tuple(range(1, channels + 1))
    names = tuple(f"band {number}" for number in numbers)
    return ImageFormat(
        numbers, names, dtype, (TYPE_RANGES[dtype],), mean=(0.4,) * channels, std=tuple(0.1 + 0.01 * n for n in numbers)
    )


def write_classes(folder: Path, channels: int, dtype: str) -> Path:
    """Two classes that differ in their last channel alone, 12 images of each in two splits, 20 x 24 pixels."""
    rng = np.random.default_rng(0)
    low, high = TYPE_RANGES[dtype]
    for split in ("train", "test"):
        for label, level in (("dark", 0.2), ("light", 0.7)):
            (folder / split / label).mkdir(parents=True)
            for number in range(12):
                values = rng.uniform(0.3, 0.5, (20, 24, channels))
                values[..., -1] += level - 0.4
                stored = low + values * (high - low)
                np.save(folder / split / label / f"{number}.npy", stored.astype(dtype))
    return folder


@pytest.mark.parametrize("channels", [1, 5, 13])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_model_of_any_channels_is_measured(
    channels: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = format_of(channels, dtype)
    torch.manual_seed(0)
    config = GTSAConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        num_channels=channels, image_format=described.to_dict(),
    )  # fmt: skip
    GTSAModel(config).save_pretrained(tmp_path / "model")
    data = write_classes(tmp_path / "data", channels, dtype)
    samples = load_samples(str(data), "train", size=16, image_format=described)
    encoder = load_encoder(str(tmp_path / "model"), device="cpu")
    assert encoder.image_format == described
    sample = next(iter(samples))
    assert sample["image"].shape == (channels, 16, 16)
    assert sample["image"].dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    # the middle 16 x 16 of 18 x 22 is cut out: means as numpy computes them of the stored values, give or take the border
    stored = np.load(data / "train" / "dark" / "0.npy").astype(np.float64)
    low, high = TYPE_RANGES[dtype]
    expected = ((stored - low) / (high - low)).mean(axis=(0, 1))
    normalised = encoder.normalize(sample["image"]).mean(dim=(1, 2)).numpy() * described.std + 0.4
    assert normalised == pytest.approx(expected, abs=0.02)
    results = evaluate_model(
        str(tmp_path / "model"), tasks=["knn", "linear"], dataset=str(data), image_size=16, cache_dir=None, bootstrap=0,
        progress=False, output=tmp_path / "results.json",
    )  # fmt: skip
    assert results["linear"]["accuracy"] == 1.0  # the last channel tells them apart
    assert (tmp_path / "results" / "features.png").is_file()


def test_scenes_are_refused_for_other_channels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the scenes are RGB of 8 bits, and the model takes 5 channels: band 1"):
        load_samples("scenes", "test", size=16, image_format=format_of(5, "uint16"))


def test_images_in_colours() -> None:
    rgb = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert in_colours(rgb) is not None
    assert np.array_equal(in_colours(rgb), rgb)
    many = np.concatenate([rgb, rgb], axis=-1)
    assert np.array_equal(in_colours(many), rgb)
    assert np.array_equal(in_colours(rgb[..., 1:2]), np.repeat(rgb[..., 1:2], 3, axis=-1))
    values = np.random.default_rng(0).normal(5, 2, (3, 50, 50, 4))
    shown: Any = in_colours(values)
    assert shown.shape == (3, 50, 50, 3)
    for channel in range(3):
        assert (shown[..., channel] == 0).mean() == pytest.approx(0.02, abs=0.001)
        assert (shown[..., channel] == 1).mean() == pytest.approx(0.02, abs=0.001)
