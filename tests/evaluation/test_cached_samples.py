"""Samples that are rendered once and used in many passes, and the thumbnails that features have to beat."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.evaluation.cached_samples import THUMBNAILS, CachedSamples, cache_if_rendered, grey, thumbnails
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.samples import Samples, load_samples
from tests.helpers.pixel_encoder import pixel_encoder

QUIET = EvaluationOptions(progress=False, cache_dir=None, batch_size=3)


def test_scenes_are_rendered_in_the_first_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = load_samples(size=16, limit=7)
    cached = CachedSamples(scenes, ["label", "depth"], pixel_encoder(8), QUIET)
    passes: list[Samples] = []
    batches = Samples.batches

    def watch(self: Samples, *given: Any, **others: Any) -> Any:
        passes.append(self)
        return batches(self, *given, **others)

    monkeypatch.setattr(Samples, "batches", watch)
    for size in (2, 7, 5):
        parts = list(cached.batches(size))
        assert [len(part["index"]) for part in parts[:-1]] == [size] * (len(parts) - 1)
        together = {name: torch.cat([part[name] for part in parts]) for name in ("index", "image", "label", "depth")}
        for row, sample in enumerate(scenes):
            assert all(torch.equal(together[name][row], torch.as_tensor(sample[name])) for name in together)
    assert passes == [scenes]
    assert cached.fingerprint == scenes.fingerprint  # features of either are the same to their cache


def test_only_scenes_are_cached(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "train" / "a" / "0.png")
    photographs, scenes = load_samples(str(tmp_path), "train", size=16), load_samples(size=16, limit=1)
    assert cache_if_rendered(photographs, [], pixel_encoder(8), QUIET) is photographs
    assert isinstance(cache_if_rendered(scenes, [], pixel_encoder(8), QUIET), CachedSamples)


def test_thumbnails_are_means_of_areas() -> None:
    images = torch.randint(256, (2, 3, 24, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = thumbnails(images).view(2, 3, 12, 12)
    for row, column in ((0, 0), (5, 7), (11, 11)):
        area = images[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].float().mean(dim=(2, 3)) / 255
        torch.testing.assert_close(small[:, :, row, column], area)
    torch.testing.assert_close(thumbnails(images.float() / 255), thumbnails(images))
    np.testing.assert_allclose(grey(thumbnails(images).numpy()), small.mean(dim=1).flatten(1).numpy(), rtol=1e-6)
    scenes = load_samples(size=24, limit=2)
    columns = compute_features(pixel_encoder(8), scenes, ["thumbnail"], QUIET, transform=THUMBNAILS)
    expected = thumbnails(torch.stack([sample["image"] for sample in scenes]))
    np.testing.assert_allclose(columns["thumbnail"], expected)
