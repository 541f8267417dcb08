"""The learning benchmark: its probes on features whose answers are known, and a tiny run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import jaccard_score

from benchmarks import learning
from benchmarks.learning import accuracy, mean_iou, nearest_neighbours, ridge


def test_ridge_picks_the_class_that_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    rows = rng.normal(size=(400, 5)) + np.eye(3, 5)[labels]
    scaled = (rows - rows[:300].mean(0)) / rows[:300].std(0, ddof=1)
    train, test = torch.from_numpy(rows[:300]).float(), torch.from_numpy(rows[300:]).float()
    found = ridge(train, torch.from_numpy(labels[:300]), test, 3).numpy()
    # penalties are shares of the rows; whichever was chosen, the classes are one of these four models'
    models = [Ridge(penalty * 300).fit(scaled[:300], np.eye(3)[labels[:300]]) for penalty in (1e-4, 1e-3, 1e-2, 1e-1)]
    assert min((found != model.predict(scaled[300:]).argmax(1)).mean() for model in models) <= 0.02
    assert (found == labels[300:]).mean() > 0.5


def test_near_neighbours_outvote_many_far_ones() -> None:
    rows = torch.tensor([[1.0, 0.0]] * 3 + [[0.6, 0.8]] * 17 + [[-1.0, 0.0]] * 20)
    labels = torch.tensor([5] * 3 + [2] * 17 + [7] * 20)
    # cosines 1 and .6 of the first: 3 against 17 exp(-.4 / .07) = .06; of the second 1 and .6 the other way round
    assert nearest_neighbours(rows * 9, labels, torch.tensor([[2.0, 0.0], [0.6, 0.8]])).tolist() == [5, 2]


def test_accuracy_and_its_interval() -> None:
    right = torch.tensor([1.0] * 80 + [0.0] * 20)
    mean, low, high = accuracy(right)
    assert [mean, high - mean] == pytest.approx([0.8, 1.96 * (0.8 * 0.2 / 99) ** 0.5])
    # turns of an image stand and fall together: their number does not narrow the interval
    assert accuracy(right[:, None].expand(-1, 4)) == pytest.approx([mean, low, high])


def test_mean_iou_is_scikit_learns() -> None:
    draws = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(17, (20, 36), generator=draws) for _ in range(2))
    value, low, high = mean_iou(predicted, truth)
    assert value == pytest.approx(jaccard_score(truth.flatten(), predicted.flatten(), average="macro"))
    assert low < value < high


def test_a_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "results")
    words = ["quickstart", "--max_steps", "2", "--per_device_train_batch_size", "2", "--dataloader_num_workers", "0"]
    sizes = ["--dataset_config", "scene-32", "--image_size", "16", "--global_size", "16", "--local_size", "8"]
    ours = ["--name", "tiny", "--work", str(tmp_path), "--train_images", "4", "--probe_images", "40"]
    monkeypatch.setattr("sys.argv", ["learning", *words, *sizes, "--no_picture", *ours])
    learning.main()
    result = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert result["steps"] == 2
    assert result["measured"].keys() == {"trained", "pixels", "random weights"}
    for numbers in result["measured"].values():
        assert all(0 <= low <= value <= high <= 1 for value, low, high in numbers.values())
    assert capsys.readouterr().out.count("| trained |") == 1
