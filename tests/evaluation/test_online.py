"""Labelled images of the instruments: the k-NN while training is the number that an evaluation measures afterwards."""

from pathlib import Path

import pytest
import torch

from hf_geossl.evaluation.evaluate import evaluate_model
from hf_geossl.evaluation.online import OnlineDataset
from hf_geossl.evaluation.samples import load_samples
from tests.helpers.gtsa_run import make_trainer
from tests.helpers.photographs import write_folder


def test_online_knn_and_its_floors_are_those_of_an_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        "scenes",
        probe_dataset=OnlineDataset(),
        max_steps=2,
        probe_every_steps=2,
        probe_images=70,
    )
    trainer.train()
    line = next(entry for entry in trainer.state.log_history if "knn_accuracy" in entry)
    assert line["step"] == 2
    trainer.save_model()
    results = evaluate_model(
        tmp_path, "knn", limit=70, test_split="validation", pictures=False, progress=False, cache_dir=None, bootstrap=0
    )
    assert line["knn_accuracy"] == results["knn"]["accuracy"]
    floors = results["knn"]["details"]["floors"]["accuracy"]
    assert trainer.parts.probes.floors["knn_accuracy"] == {
        "random weights": floors["random weights"],
        "thumbnail": floors["thumbnail"],
        "chance": floors["most frequent class"],
    }


def test_images_and_classes_are_the_evaluations(tmp_path: Path) -> None:
    labelled = OnlineDataset().load(5, 32)
    expected = list(load_samples("scenes", "validation", size=32, limit=5))
    assert torch.equal(labelled.images, torch.stack([sample["image"] for sample in expected]))
    assert labelled.labels.tolist() == [sample["label"] for sample in expected]
    assert (labelled.num_classes, labelled.name, len(labelled.train_images)) == (8, "scenes (validation)", 5)
    assert 0 < OnlineDataset().seconds(100, 32) < 20


def test_data_without_classes_is_refused_before_training(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 4)
    with pytest.raises(ValueError, match="no 'label'"):
        OnlineDataset(str(folder), "train").check(32)
    with pytest.raises(ValueError, match="split"):
        OnlineDataset(test_split="nowhere").check(32)
