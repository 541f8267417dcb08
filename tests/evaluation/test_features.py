"""Features of images: those of the model, computed once, cached by what they were computed from."""

import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.evaluation import features
from hf_geossl.evaluation.features import (
    THUMBNAILS,
    Transform,
    compute_features,
    grey,
    thumbnails,
)
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.samples import load_samples
from tests.helpers.pixel_encoder import pixel_encoder
from tests.helpers.supervised import small_model

QUIET = EvaluationOptions(progress=False, cache_dir=None, batch_size=4)
COLUMNS = ["both", "patches", "class_tokens_2", "label", "index"]


def test_features_are_those_of_the_model_image_by_image() -> None:
    encoder, samples = load_encoder(small_model()), load_samples(size=32, limit=6)
    columns = compute_features(encoder, samples, COLUMNS, QUIET)
    for row, sample in enumerate(samples):
        pixel_values = encoder.normalize(sample["image"][None])
        tokens = encoder.tokens(pixel_values)
        np.testing.assert_allclose(columns["both"][row], tokens.both[0], atol=1e-5)
        np.testing.assert_allclose(columns["patches"][row], tokens.patches[0], atol=1e-5)
        np.testing.assert_allclose(columns["class_tokens_2"][row], encoder.class_tokens(pixel_values, 2)[0], atol=1e-5)
        assert columns["label"][row] == sample["label"]
    assert columns["index"].tolist() == list(range(6))


def test_a_transform_is_applied_first_and_gives_targets() -> None:
    flip = Transform(
        "flipped", lambda batch: (batch["image"].flip(-1), {"shade": batch["image"].float().mean((1, 2, 3))})
    )
    encoder, samples = pixel_encoder(8), load_samples(size=16, limit=3)
    columns = compute_features(encoder, samples, ["patches", "shade"], QUIET, transform=flip)
    for row, sample in enumerate(samples):
        expected = encoder.tokens(encoder.normalize(sample["image"].flip(-1)[None])).patches[0]
        np.testing.assert_allclose(columns["patches"][row], expected, atol=1e-6)
        assert columns["shade"][row] == pytest.approx(float(sample["image"].float().mean()))


def test_cached_columns_are_read_and_only_missing_ones_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, samples = load_encoder(small_model()), load_samples(size=32, limit=6)
    options = replace(QUIET, cache_dir=tmp_path)
    computed: list[list[str]] = []
    write = features._write_columns

    def watch(folder: Any, encoder: Any, samples: Any, columns: list[str], *given: Any) -> None:
        computed.append(list(columns))
        write(folder, encoder, samples, columns, *given)

    monkeypatch.setattr(features, "_write_columns", watch)
    first = compute_features(encoder, samples, ["both"], options)
    again = compute_features(encoder, samples, ["both", "label"], options)
    compute_features(encoder, samples, ["label", "both"], options)
    assert computed == [["both"], ["label"]]
    np.testing.assert_array_equal(first["both"], again["both"])
    # other weights, another size of images, another transform: computed anew
    compute_features(load_encoder(small_model(seed=1)), samples, ["both"], options)
    compute_features(encoder, load_samples(size=40, limit=6), ["both"], options)
    compute_features(encoder, samples, ["both"], options, transform=Transform("same", lambda b: (b["image"], {})))
    assert computed[2:] == [["both"]] * 3
    with torch.no_grad():
        encoder.module.layernorm.bias.add_(1.0)  # type: ignore[union-attr, operator]
    compute_features(encoder, samples, ["both"], options)
    assert computed[5:] == [["both"]]


def test_features_that_tasks_share_come_of_one_pass_and_are_what_each_would_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, samples = load_encoder(small_model()), load_samples(size=32, limit=6)
    options = replace(QUIET, cache_dir=tmp_path / "together", together=("pooled", "both", "patches"))
    passes: list[int] = []
    tokens = type(encoder).tokens
    monkeypatch.setattr(
        type(encoder), "tokens", lambda self, images: (passes.append(len(images)), tokens(self, images))[1]
    )
    first = compute_features(encoder, samples, ["pooled"], options)
    assert list(first) == ["pooled"]
    same = Transform("", lambda batch: (batch["image"], {}))  # images as they are
    shared = compute_features(encoder, samples, ["both", "patches", "index"], options, transform=same)
    assert sum(passes) == 6
    alone = compute_features(encoder, samples, ["both", "patches"], replace(QUIET, cache_dir=None))
    for name in alone:
        np.testing.assert_array_equal(shared[name], alone[name])


def test_a_target_that_the_data_lack_is_named() -> None:
    with pytest.raises(ValueError, match=r"scenes \(test\) has no 'normals', which this task needs"):
        compute_features(pixel_encoder(8), load_samples(size=16, limit=2), ["normals"], QUIET)


@pytest.mark.parametrize("damage", ["short", "empty form", "no form", "no values", "other form"])
def test_features_of_a_damaged_cache_are_computed_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = EvaluationOptions(progress=False, cache_dir=tmp_path, bootstrap=0)
    encoder, samples = load_encoder(small_model()), load_samples(size=32, limit=6)
    first = {
        name: np.array(array) for name, array in compute_features(encoder, samples, ["both", "label"], options).items()
    }
    (column,) = tmp_path.glob("*/both")
    values, form = column / "values.bin", column / "form.json"
    if damage == "short":
        values.write_bytes(values.read_bytes()[:-8])
    elif damage == "empty form":
        form.write_text("")
    elif damage == "other form":
        form.write_text(json.dumps({"shape": 3}))
    else:
        (form if damage == "no form" else values).unlink()
    with caplog.at_level(logging.WARNING, "hf_geossl"):
        again = compute_features(encoder, samples, ["both", "label"], options)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    [line] = caplog.messages
    assert line.startswith("features of the cache are damaged and computed again (both: ")
    caplog.clear()
    compute_features(encoder, samples, ["both", "label"], options)
    assert not caplog.messages


def test_what_killed_runs_left_in_the_cache_goes(tmp_path: Path) -> None:
    old, young = tmp_path / ".part-old", tmp_path / ".part-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    options = EvaluationOptions(progress=False, cache_dir=tmp_path, bootstrap=0)
    compute_features(load_encoder(small_model()), load_samples(size=32, limit=2), ["both"], options)
    assert young.is_dir()
    assert not old.exists()


QUIET = EvaluationOptions(progress=False, cache_dir=None, batch_size=3)


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
