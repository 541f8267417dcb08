"""Images with truth: which are taken, what is known of them, and what a broken one costs."""

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from supervised import small_model

from hf_geossl.evaluation import samples as reading
from hf_geossl.evaluation.encoders import load_encoder
from hf_geossl.evaluation.knn import KNNSettings, measure_knn
from hf_geossl.evaluation.linear import LogisticSettings, measure_linear
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.samples import load_samples

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=0)


def class_folder(root: Path, classes: int = 3, images: int = 30) -> Path:
    """Plain images in one folder a class; the red channel is the number of the image in all."""
    for split in ("train", "test"):
        for label in range(classes):
            (root / split / f"class{label}").mkdir(parents=True)
            for number in range(images):
                pixels = np.full((16, 16, 3), label * images + number, np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{label}" / f"{number:03}.png")
    return root


def stream(count: int, shards: int = 3) -> Any:
    """Rows in the order of their classes, ten of each, as a stream."""
    encoded = []
    for index in range(count):
        file = BytesIO()
        Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(file, "PNG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    rows = Dataset.from_dict({"image": encoded, "label": [index // 10 for index in range(count)]})
    return rows.to_iterable_dataset(num_shards=shards)


def test_a_limit_takes_images_of_all_classes_of_a_folder(tmp_path: Path) -> None:
    folder = str(class_folder(tmp_path))
    thirty = load_samples(folder, "train", size=16, limit=30)
    places = [sample["index"] for sample in thirty]
    labels = np.array([sample["label"] for sample in thirty])
    assert places == sorted(places)
    assert [int(sample["image"][0, 0, 0]) for sample in thirty] == places
    assert np.bincount(labels, minlength=3).min() >= 4  # of 10; all of one class when the first are taken
    more = {sample["index"] for sample in load_samples(folder, "train", size=16, limit=60)}
    assert set(places) < more
    assert [sample["index"] for sample in load_samples(folder, "train", size=16)] == list(range(90))


def test_a_limit_takes_images_of_all_classes_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_open", lambda *_: stream(90))
    taken = load_samples("user/name", "train", size=16, limit=30)
    labels = [sample["label"] for sample in taken]
    assert len(labels) == 30
    assert len(set(labels)) >= 6  # of 9; 3 when the first are taken
    assert [sample["label"] for sample in taken] == labels  # every pass sees the same
    seen = {int(image[0, 0, 0]) for sample in taken for image in [sample["image"]]}
    batches = taken.endless_batches(10, seed=5)
    assert {int(value) for _ in range(3) for value in next(batches)["image"][:, 0, 0, 0]} == seen
    everything = load_samples("user/name", "train", size=16)
    assert [sample["label"] for sample in everything] == [index // 10 for index in range(90)]


def test_training_images_of_one_class_are_refused(tmp_path: Path) -> None:
    shutil.rmtree(class_folder(tmp_path, classes=2) / "train" / "class1")
    data = EvaluationData(dataset=str(tmp_path), size=16)
    encoder = load_encoder(small_model())
    told = "must show at least two classes, all 30 of them are of class0"
    with pytest.raises(ValueError, match=told):
        measure_knn(encoder, data, QUIET, KNNSettings())
    with pytest.raises(ValueError, match=told):
        measure_linear(encoder, data, QUIET, LogisticSettings())
