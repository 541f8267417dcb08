"""Crops of photographs: the pixels that are cut by hand, the same again, apart in training and validation."""

import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image

from hf_geossl import load_stream
from hf_geossl.data.photographs import COUNTS, SIDE, Photographs
from hf_geossl.data.sources.opening import open_rows


def test_crops_are_parts_of_their_photograph() -> None:
    """Of validation the first is of the cat; some place and size of it has these pixels."""
    crop = np.asarray(Photographs("validation")[0]["image"], dtype=float)
    assert crop.shape == (SIDE, SIDE, 3)
    draw = np.random.default_rng([0, 1])
    cat = Image.fromarray(skimage.data.chelsea())
    side = round(300 * draw.uniform(0.3, 1))
    left, top = int(draw.integers(451 - side + 1)), int(draw.integers(300 - side + 1))
    by_hand = cat.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    assert abs(np.asarray(by_hand) - crop).mean() < 1  # the borders differ: one resizing sees beyond them


def test_a_crop_follows_from_its_index_and_split() -> None:
    train, validation = Photographs(), Photographs("validation")
    assert train[7]["image"] == Photographs()[7]["image"]
    assert train[2]["image"] != train[7]["image"]  # of the same photograph
    assert train[0]["image"] != validation[0]["image"]
    assert (len(train), len(validation)) == (COUNTS["train"], COUNTS["validation"])
    with pytest.raises(ValueError, match="has no split 'test'; its splits are train, validation"):
        Photographs("test")


def test_they_are_opened_by_their_name_and_have_no_labels() -> None:
    samples = load_stream("photographs", "validation").one_epoch()
    assert next(iter(samples))["image"].size == (SIDE, SIDE)
    for options in ({"config_name": "scene"}, {"image_column": "photo"}, {"revision": "main"}):
        with pytest.raises(ValueError, match="means nothing for photographs"):
            load_stream("photographs", **options)
    with pytest.raises(ValueError, match="without labels: name a labelled dataset"):
        open_rows("photographs", "train")


def test_without_the_libraries_that_carry_them_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_geossl.data import photographs

    photographs._read.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ImportError, match="pip install scikit-image scikit-learn, or name other images"):
        load_stream("photographs")
