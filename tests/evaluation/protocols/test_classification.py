"""Classification on frozen features: k-NN, linear probes, labels, quarter turns, LOCA's positions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightly.utils.benchmarking import knn_predict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from hf_geossl import LOCAConfig, LOCAForPreTraining
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import TaskResult
from hf_geossl.evaluation.protocols import knn, linear, linear_sgd, rotation
from hf_geossl.evaluation.protocols import position_loca as position
from hf_geossl.evaluation.fitting.classifiers import LogisticClassifier, classification_result, hold_out
from tests.helpers.supervised import PATCH, SIZE, RenderedData, small_model

QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)
FEW = linear.LogisticSettings(c_values=(1e-3, 1e-2))


def clusters(seed: int, images: int, classes: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features around one random centre a class."""
    generator = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(classes, width))
    labels = generator.integers(classes, size=images)
    return (centers[labels] + 1.5 * generator.normal(size=(images, width))).astype(np.float32), labels


# ---- k nearest neighbours ----


def test_votes_equal_the_formula_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(1, 100, 5)
    queries, _ = clusters(2, 37, 5)
    monkeypatch.setattr(knn, "QUERIES", 16)
    monkeypatch.setattr(knn, "NEIGHBOURS", 32)
    votes = knn.vote(queries, features, labels, (1, 10, 70), 5, 0.07)
    for row, query in enumerate(queries.astype(np.float64)):
        cosines = features @ query / np.linalg.norm(features, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosines)
        for k, found in votes.items():
            expected = np.zeros(5)
            for image in nearest[:k]:
                expected[labels[image]] += np.exp(cosines[image] / 0.07) / np.exp(1 / 0.07)
            np.testing.assert_allclose(found[row], expected, rtol=1e-4)


def test_votes_agree_with_lightly() -> None:
    features, labels = clusters(1, 300, 5)
    queries, _ = clusters(2, 80, 5)
    bank = F.normalize(torch.from_numpy(features), dim=1)
    order = knn_predict(
        F.normalize(torch.from_numpy(queries), dim=1), bank.T, torch.from_numpy(labels), 5, knn_k=20, knn_t=0.07
    )
    votes = knn.vote(queries, features, labels, (20,), 5, 0.07)[20]
    np.testing.assert_array_equal(votes.argmax(axis=1), order[:, 0].numpy())


def test_knn_needs_as_many_training_images_as_neighbours() -> None:
    with pytest.raises(ValueError, match="20 neighbours need as many training images, got 12"):
        knn.measure_knn(load_encoder(small_model()), RenderedData(limit=12), QUIET, knn.KNNSettings())
    with pytest.raises(ValueError, match="main_neighbours = 5"):
        knn.KNNSettings(main_neighbours=5)


# ---- linear probes ----


def test_logistic_classifier_chooses_its_penalty_on_held_out_rows_and_fits_all() -> None:
    features, labels = clusters(3, 200, 4)
    queries, _ = clusters(4, 50, 4)
    held = hold_out(200, 0.25, seed=1)
    assert held.sum() == 50
    probe = LogisticClassifier(features, labels, held, (1e-5, 1e-1), 4, 500)
    right = {}
    for c in (1e-5, 1e-1):
        scaler = StandardScaler().fit(features[~held])
        model = LogisticRegression(C=c, max_iter=500).fit(scaler.transform(features[~held]), labels[~held])
        right[c] = model.score(scaler.transform(features[held]), labels[held])
    assert right[1e-1] > right[1e-5]
    assert probe.c == 1e-1
    assert probe.converged
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=1e-1, max_iter=500).fit(scaler.transform(features), labels)
    expected = model.decision_function(scaler.transform(queries))
    np.testing.assert_allclose(probe.scores(queries), expected, atol=1e-3)


def test_a_class_that_training_does_not_show_is_never_named() -> None:
    features, labels = clusters(3, 60, 2)
    probe = LogisticClassifier(features, 2 * labels, hold_out(60, 0.2, 0), (1.0,), 4, 200)
    scores = probe.scores(features)
    assert set(scores.argmax(axis=1)) == {0, 2}
    assert (scores[:, [1, 3]].max(axis=1) < scores[:, [0, 2]].min(axis=1)).all()


def test_result_tells_accuracy_and_confusion_and_draws_images_with_their_repeats() -> None:
    generator = np.random.default_rng(0)
    labels = np.tile(generator.integers(3, size=60), 4)
    scores = np.tile(generator.normal(size=(60, 3)), (4, 1)) + 0.8 * np.eye(3)[labels]
    options = replace(QUIET, bootstrap=400)
    once = classification_result(scores[:60], labels[:60], 3, None, options, "")
    repeated = classification_result(scores, labels, 3, None, options, "", repeats=4)
    expected = confusion_matrix(labels, scores.argmax(axis=1), labels=range(3))
    np.testing.assert_array_equal(repeated.details["confusion_matrix"], expected)
    balanced = balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert repeated.metrics["mean_per_class_accuracy"] == pytest.approx(balanced)
    # four copies of an image know no more than one
    assert repeated.intervals["accuracy"] == pytest.approx(once.intervals["accuracy"])
    assert repeated.pictures["confusion_matrix"]().size[0] > 100


def test_heads_of_all_learning_rates_train_as_if_each_were_alone() -> None:
    features, labels = clusters(5, 96, 3)
    settings = linear_sgd.LinearSGDSettings(epochs=4, batch_size=32)
    device = torch.device("cpu")
    rows = np.arange(96)
    together = linear_sgd.train_heads(features, labels, rows, (0.1, 5.0, 0.01), 3, settings, QUIET, device)
    [alone] = linear_sgd.train_heads(features, labels, rows, (0.1,), 3, settings, QUIET, device)
    torch.testing.assert_close(together[0].weight, alone.weight, rtol=1e-4, atol=1e-6)
    assert (together[0].weight - together[2].weight).abs().max() > 0.01

    # the same by the textbook: momentum 0.9, a cosine to 0, the learning rate scaled by 32 / 256
    generator, expected = np.random.default_rng(QUIET.seed), torch.nn.Linear(12, 3)
    zero = linear_sgd.train_heads(features, labels, rows, (0.0,), 3, settings, QUIET, device)[0]
    expected.load_state_dict(zero.state_dict())  # a head that has not learned has its first weights
    velocity = [torch.zeros_like(p) for p in expected.parameters()]
    for epoch in range(4):
        order = generator.permutation(rows)
        for part in range(3):
            chosen = np.sort(order[32 * part : 32 * part + 32])
            rate = 0.1 * 32 / 256 * 0.5 * (1 + np.cos(np.pi * (3 * epoch + part) / 12))
            loss = F.cross_entropy(expected(torch.from_numpy(features[chosen])), torch.from_numpy(labels[chosen]))
            for p, v, g in zip(
                expected.parameters(), velocity, torch.autograd.grad(loss, list(expected.parameters())), strict=True
            ):
                v.mul_(0.9).add_(g)
                p.data.sub_(rate * v)
    torch.testing.assert_close(alone.weight, expected.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_linear_probe_sees_class_tokens_and_the_mean_patch_token(
    layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    original = linear_sgd.train_heads

    def watch(features: np.ndarray, *given: Any) -> Any:
        seen.append(features)
        return original(features, *given)

    monkeypatch.setattr(linear_sgd, "train_heads", watch)
    model, data = small_model(), RenderedData(limit=40)
    settings = linear_sgd.LinearSGDSettings((0.1,), epochs=1, class_token_layers=layers, average_pool=True)
    result = linear_sgd.measure_linear_sgd(load_encoder(model), data, QUIET, settings)
    assert result.details["feature"] == f"class_tokens_{layers}+mean"
    pixels = load_encoder(model).normalize(next(data.train.batches(40))["image"])
    with torch.no_grad():
        states = model.eval()(pixels, output_hidden_states=True).hidden_states[-layers:]
        states = [model.layernorm(state) for state in states]
    parts = [state[:, 0] for state in states] + [states[-1][:, 1:].mean(dim=1)]
    np.testing.assert_allclose(seen[0], torch.cat(parts, dim=1), atol=1e-5)
    without = linear_sgd.measure_linear_sgd(load_encoder(model), data, QUIET, replace(settings, average_pool=False))
    assert seen[-1].shape[1] == 3 * 144  # the last floor, a thumbnail
    assert without.details["feature"] == f"class_tokens_{layers}"


# ---- what features that know something reach ----


@pytest.fixture(scope="module")
def measured(supervised: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskResult]:
    """All protocols on a model trained with labels; the details hold what random weights reach."""
    data = RenderedData()
    options = replace(QUIET, cache_dir=tmp_path_factory.mktemp("features"))
    sgd = linear_sgd.LinearSGDSettings(epochs=60, batch_size=32, learning_rates=(0.1, 0.5))
    turns = rotation.RotationSettings(c_values=(1e-3, 1e-2))
    return {
        "knn": knn.measure_knn(supervised, data, options, knn.KNNSettings()),
        "linear": linear.measure_linear(supervised, data, options, FEW),
        "multilabel": linear.measure_multilabel(supervised, data, options, FEW),
        "linear_sgd": linear_sgd.measure_linear_sgd(supervised, data, options, sgd),
        "rotation": rotation.measure_rotation(supervised, data, options, turns),
    }


@pytest.mark.parametrize(
    ("task", "metric", "floor", "above"),
    [
        ("knn", "accuracy", "random weights", 0.10),
        ("linear", "accuracy", "random weights", 0.10),
        ("linear_sgd", "accuracy", "random weights", 0.10),
        ("multilabel", "mean_average_precision", "random weights", 0.05),
    ],
)
def test_supervised_features_are_far_above_random_ones(
    measured: dict[str, TaskResult], task: str, metric: str, floor: str, above: float
) -> None:
    result = measured[task]
    floors = result.details["floors"][metric]
    print(task, result.metrics, floors)
    assert result.metrics[metric] > floors[floor] + above
    lower, upper = result.intervals[metric]
    assert lower < result.metrics[metric] < upper
    assert next(iter(result.metrics)) == metric


def test_quarter_turns_show_gravity_from_the_side_and_nothing_from_above(measured: dict[str, TaskResult]) -> None:
    result = measured["rotation"]
    print(result.metrics, result.details["floors"])
    floors = result.details["floors"]
    assert result.metrics["accuracy"] > floors["accuracy"]["random weights"] + 0.05
    assert floors["accuracy"]["random weights"] > 0.35  # the horizon is seen without any training
    assert 0.18 < result.metrics["accuracy_topdown"] < 0.36
    assert 0.18 < floors["accuracy_topdown"]["RGB thumbnail"] < 0.34


def test_quarter_turns_are_measured_in_the_mode_of_the_data() -> None:
    encoder, settings = load_encoder(small_model(size=32)), rotation.RotationSettings(c_values=(1e-2,))
    options = replace(QUIET, bootstrap=0)
    results = {
        mode: rotation.measure_rotation(encoder, EvaluationData(size=32, limit=24, config_name=mode), options, settings)
        for mode in (None, "scene", "object", "topdown")
    }
    floors = {mode: result.details["floors"]["accuracy"]["RGB thumbnail"] for mode, result in results.items()}
    assert set(results["topdown"].metrics) == {"accuracy"}
    for mode in (None, "scene", "object"):
        # another part of the same result: what is measured from above beside the data's own mode
        assert results[mode].metrics["accuracy_topdown"] == results["topdown"].metrics["accuracy"]
        assert results[mode].details["floors"]["accuracy_topdown"]["RGB thumbnail"] == floors["topdown"]
    assert floors[None] == floors["scene"]
    assert len({floors[mode] for mode in ("scene", "object", "topdown")}) == 3


def test_quarter_turns_are_exact() -> None:
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    for turns in range(4):
        found, further = rotation.turned(turns).apply({"image": images})
        np.testing.assert_array_equal(found[1].permute(1, 2, 0), np.rot90(images[1].permute(1, 2, 0).numpy(), turns))
        assert further["thumbnail"].shape == (2, 3 * 144)


def test_average_precision_is_that_of_each_label_by_itself(measured: dict[str, TaskResult]) -> None:
    result = measured["multilabel"]
    values = [value for value in result.details["average_precision"].values() if not np.isnan(value)]
    assert result.metrics["mean_average_precision"] == pytest.approx(np.mean(values))
    truth = np.stack([sample["multi_label"].numpy() for sample in RenderedData().test])
    equal = [average_precision_score(column, np.zeros(len(column))) for column in truth.T if column.any()]
    assert result.details["floors"]["mean_average_precision"]["equal scores"] == pytest.approx(np.mean(equal))


# ---- other people's models ----


def foreign_model(kind: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "timm":
            return timm.models.VisionTransformer(
                img_size=SIZE, patch_size=16, embed_dim=48, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True
            )
        return ViTModel(
            ViTConfig(
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=96,
                image_size=SIZE,
                patch_size=16,
            ),
            add_pooling_layer=False,
        )


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_foreign_models_give_the_same_numbers_twice_with_and_without_cache(kind: str, tmp_path: Path) -> None:
    encoder, data = load_encoder(foreign_model(kind)), RenderedData(limit=80)
    turns = rotation.RotationSettings(c_values=(1e-2,))
    state = torch.random.get_rng_state()

    def measure(options: EvaluationOptions) -> dict[str, float]:
        results = {
            "knn": knn.measure_knn(encoder, data, options, knn.KNNSettings()),
            "linear": linear.measure_linear(encoder, data, options, FEW),
            "rotation": rotation.measure_rotation(encoder, data, options, turns),
        }
        return {f"{task}.{name}": value for task, result in results.items() for name, value in result.metrics.items()}

    options = replace(QUIET, bootstrap=0)
    plain = measure(options)
    cached = replace(options, cache_dir=tmp_path)
    assert plain == measure(cached) == measure(cached)
    others = measure(replace(options, batch_size=7))
    assert others == pytest.approx(plain, abs=0.03)  # two images of 80: the last digits may turn a vote
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(0 <= value <= 1 for value in plain.values())


# ---- LOCA's positions ----


def loca(**given: Any) -> LOCAForPreTraining:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
        config |= {"patch_size": PATCH, "num_prototypes": 16, "head_hidden_size": 32, "head_bottleneck_size": 16}
        return LOCAForPreTraining(LOCAConfig(**config | given)).eval()


def test_positions_are_scored_by_hand() -> None:
    positions = torch.tensor([[0, 5, -1, 15]])
    logits = F.one_hot(torch.tensor([[0, 8, 3, 12]]), 16).float()
    # right; (1, 1) found at (2, 0); outside; (3, 3) found at (3, 0)
    found, distance, inside = position.score_positions(logits, positions, 4)[0].tolist()
    assert (found, inside) == (1, 3)
    assert distance == pytest.approx(2**0.5 + 3)
    assert position.summarize(np.array([1, 2**0.5 + 3, 3])) == pytest.approx(
        {"accuracy": 1 / 3, "distance": (2**0.5 + 3) / 3}
    )


def test_a_head_that_knows_every_position_is_right_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(loca())
    views = position._views(encoder, position.PositionSettings(focal_queries=3))
    batch = next(RenderedData(limit=12).samples("test", size=40).batches(12))
    truths: list[torch.Tensor] = []
    original = position.score_positions

    def perfect(logits: torch.Tensor, positions: torch.Tensor, columns: int) -> torch.Tensor:
        truths.append(positions)
        return original(F.one_hot(positions.clamp_min(0), logits.shape[-1]), positions, columns)

    monkeypatch.setattr(position, "score_positions", perfect)
    sums = position._score_batch(encoder.whole, views, batch, 3, torch.device("cpu"), 0)
    assert sums.keys() == {"random_query", "random_query_masked", "focal_queries", "focal_queries_masked"}
    for values in sums.values():
        assert torch.equal(values[:, 0], values[:, 2])
        assert values[:, 1].sum() == 0
    assert sums["random_query"][:, 2].sum() == (truths[0] >= 0).sum() > 0


def test_views_show_as_much_of_an_image_as_the_settings_say() -> None:
    settings = position.PositionSettings(reference_scale=(0.5, 0.6), focal_scale=(0.2, 0.25))
    sample = position._views(load_encoder(loca()), settings).views(np.zeros((100, 100, 3), dtype=np.uint8), seed=0)
    x1, y1, x2, y2 = sample["crop_boxes"].unbind(dim=1)
    shares = (x2 - x1) * (y2 - y1) / 100**2
    assert ((shares[:2] > 0.48) & (shares[:2] < 0.62)).all()
    assert ((shares[2:] > 0.18) & (shares[2:] < 0.27)).all()


@pytest.mark.parametrize("given", [{}, {"location_target": "self"}], ids=["loca", "self"])
def test_position_accuracy_of_random_weights_is_chance_and_no_matter_of_batches(given: dict[str, Any]) -> None:
    encoder, data = load_encoder(loca(**given)), RenderedData(limit=40)
    settings = position.PositionSettings(focal_queries=2)
    result = position.measure_position(encoder, data, QUIET, settings)
    assert set(result.metrics) == {f"position_{w}{m}" for w in ("accuracy", "distance") for m in ("", "_masked")}
    assert result.details["floors"]["position_accuracy"] == {"chance": 1 / 16}
    assert result.details["floors"]["position_accuracy_masked"] == {"chance": 1 / 16}
    assert result.metrics["position_accuracy"] == pytest.approx(1 / 16, abs=0.06)
    assert 1 < result.metrics["position_distance"] < 4
    again = position.measure_position(encoder, data, replace(QUIET, batch_size=9), settings)
    assert again.metrics == pytest.approx(result.metrics, abs=1e-3)
    assert result.details["visible_positions_masked"] == 3


def test_predicted_positions_are_those_of_the_training_step() -> None:
    model = loca()
    reference, query = torch.randn(2, 2, 3, 32, 32)
    visible = torch.tensor([4, 1, 9])
    step = model(
        reference,
        query,
        random_query_positions=torch.zeros(2, 16, dtype=torch.long),
        kept_query_tokens=torch.arange(16),
        visible_reference_tokens=visible,
    )
    torch.testing.assert_close(model.predict_positions(reference, query, visible), step.random_query_logits)


def test_position_needs_the_training_head() -> None:
    with pytest.raises(ValueError, match="position needs the training head of a LOCAForPreTraining"):
        position.measure_position(load_encoder(small_model()), RenderedData(), QUIET, position.PositionSettings())
