"""The equivariance benchmark: what it asks, that it does not leak, and that it finds equivariance where there is some."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from torchvision.transforms.v2 import functional as TF

from hf_geossl.evaluation.encoders import Encoder, Tokens
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols.equivariance import (
    FLOORS,
    EquivarianceSettings,
    Fitted,
    _is_above,
    measure_equivariance,
    r2_by_angle,
)
from hf_geossl.evaluation.fitting.regression import BilinearRidge, Pairs, Perceptron, Ridge
from hf_geossl.evaluation.protocols.transformations import Transformed, larger_size, middle, target_ranges
from hf_geossl.evaluation.samples import Samples
from tests.helpers.supervised import SIZE, RenderedData, small_model

CPU = torch.device("cpu")
QUIET = EvaluationOptions(progress=False, cache_dir=None, bootstrap=50)


def linear_pairs(seed: int, images: int, noise: float = 0.1) -> Pairs:
    """Two transformations an image whose targets are linear in the difference of the two features, and noise."""
    generator = np.random.default_rng(seed)
    weight = np.random.default_rng(0).normal(size=(6, 2))
    before = generator.normal(3.0, 2.0, size=(images, 6)).astype(np.float32)
    after = [generator.normal(size=(images, 6)).astype(np.float32) for _ in range(2)]
    targets = [(part - before) @ weight + noise * generator.normal(size=(images, 2)) for part in after]
    return Pairs([(before, part) for part in after], targets)


# ---- regression ----


@pytest.mark.parametrize("penalty", [1e-3, 0.5])
def test_ridge_equals_scikit_learn(penalty: float) -> None:
    train, test = linear_pairs(1, 70), linear_pairs(2, 30)
    ridge = Ridge(train, np.arange(70) < 10, (penalty,), CPU)
    x = torch.cat([x for x, _ in train.blocks(np.arange(70))]).double().numpy()
    queries = torch.cat([x for x, _ in test.blocks(np.arange(30))]).double().numpy()
    scaler = StandardScaler().fit(x)
    peer = SklearnRidge(alpha=penalty * len(x)).fit(scaler.transform(x), train.truth)  # its error is not divided
    np.testing.assert_allclose(ridge.predict(test), peer.predict(scaler.transform(queries)), rtol=1e-6, atol=1e-8)


def test_ridge_chooses_the_penalty_on_held_out_images() -> None:
    train = linear_pairs(1, 40, noise=8.0)
    held = np.arange(40) % 4 == 0
    penalties = (1e-6, 1e-2, 0.3, 1e4)
    kept = np.flatnonzero(~held)
    errors = []
    for penalty in penalties:
        rows = [x for x, _ in train.blocks(kept)], [y for _, y in train.blocks(kept)]
        x, y = (torch.cat(part).numpy().astype(np.float64) for part in rows)
        scaler = StandardScaler().fit(x)
        peer = SklearnRidge(alpha=penalty * len(x)).fit(scaler.transform(x), y)
        rest = [torch.cat(part).numpy() for part in zip(*train.blocks(np.flatnonzero(held)), strict=True)]
        errors.append(1 - r2_score(rest[1], peer.predict(scaler.transform(rest[0]))))
    assert 0 < np.argmin(errors) < 3  # so that there is something to choose
    assert Ridge(train, held, penalties, CPU).penalty == penalties[int(np.argmin(errors))]


def test_perceptron_learns_what_is_not_linear_and_leaves_the_generator_alone() -> None:
    def pairs(seed: int, images: int) -> Pairs:
        x = np.random.default_rng(seed).uniform(-1, 1, size=(images, 3)).astype(np.float32)
        return Pairs([(x,)], [30 * np.abs(x[:, :1]) - 15 + 5 * x[:, 1:2] * x[:, 2:]])

    state = torch.random.get_rng_state()
    given: dict[str, Any] = {
        "hidden_size": 64,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "options": QUIET,
        "device": CPU,
    }
    train, test = pairs(1, 512), pairs(2, 200)
    found = Perceptron(train, [(-20, 20)], epochs=60, **given).predict(test)
    assert r2_score(test.truth, found) > 0.97
    assert r2_score(test.truth, Ridge(train, np.arange(512) < 99, (1e-3,), CPU).predict(test)) < 0.1
    again = Perceptron(train, [(-20, 20)], epochs=60, **given).predict(test)
    np.testing.assert_array_equal(found, again)
    assert torch.equal(state, torch.random.get_rng_state())


# ---- transformations ----


def batch_of(images: torch.Tensor, index: list[int] | None = None) -> dict[str, Any]:
    return {"image": images, "index": torch.tensor(index or list(range(len(images))))}


@pytest.mark.parametrize("transformation", ["rotation", "translation", "blur"])
@pytest.mark.parametrize("size", [16, 32, 64, 97])
def test_no_border_is_seen_in_the_middle(transformation: str, size: int) -> None:
    white = torch.full((64, 3, larger_size(size), larger_size(size)), 255, dtype=torch.uint8)
    white[..., 0, :] = white[..., -1, :] = white[..., 0] = white[..., -1] = 0  # nor the outermost pixels
    images, _ = Transformed(transformation, size, "zeros", 0, "test", 0).transform(CPU).apply(batch_of(white))
    assert images.shape == (64, 3, size, size)
    inner = images if transformation == "blur" else images[..., 1:-1, 1:-1]
    assert inner.min() > 0.999
    small = middle(white, size)
    if transformation != "blur":
        padded, _ = Transformed(transformation, size, "zeros", 0, "test", 0).transform(CPU).apply(batch_of(small))
        assert padded.amin(dim=(1, 2, 3)).median() < 0.9


def test_what_is_done_is_what_is_asked() -> None:
    size = 32
    scene = next(RenderedData(limit=8).samples("test", size=larger_size(size)).batches(8))

    def transformed(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        images, further = Transformed(name, size, "zeros", 3, "test", 1).transform(CPU).apply(scene)
        for values, (low, high) in zip(further["target"].T, target_ranges(name, size).values(), strict=True):
            assert low <= values.min() < values.max() <= high
        return images, further["target"]

    whole = scene["image"].float() / 255
    images, angles = transformed("rotation")
    bilinear = TF.InterpolationMode.BILINEAR
    for image, found, angle in zip(whole, images, angles[:, 0].tolist(), strict=True):
        expected = middle(TF.affine(image, angle, [0, 0], 1.0, [0.0, 0.0], interpolation=bilinear), size)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    images, shifts = transformed("translation")
    assert target_ranges("translation", 224)["x"] == pytest.approx((-10, 10))
    for image, found, (x, y) in zip(whole, images, shifts.tolist(), strict=True):
        expected = middle(TF.affine(image, 0.0, [x, y], 1.0, [0.0, 0.0], interpolation=bilinear), size)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    images, changes = transformed("color")
    for image, found, (b, c, s, h) in zip(middle(whole, size), images, changes.tolist(), strict=True):
        expected = TF.adjust_contrast(TF.adjust_brightness(image, 1 + b), 1 + c)
        expected = TF.adjust_hue(TF.adjust_saturation(expected, 1 + s), h)
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)
    images, sigmas = transformed("blur")
    for image, found, sigma in zip(whole, images, sigmas[:, 0].tolist(), strict=True):
        expected = middle(TF.gaussian_blur(image, [13, 13], [sigma, sigma]), size)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_an_image_is_transformed_by_its_index_whatever_the_batch() -> None:
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)
    done = Transformed("rotation", 16, "reflection", 0, "train", 0)
    together = done.transform(CPU).apply(batch_of(images, [0, 5, 1023, 1024, 5000, 7]))
    alone = done.transform(CPU).apply(batch_of(images[3:5], [1024, 5000]))
    assert torch.equal(together[0][3:5], alone[0])
    assert torch.equal(together[1]["target"][3:5], alone[1]["target"])
    drawn = {float(together[1]["target"][0, 0])}
    for other in ({"seed": 1}, {"split": "test"}, {"repeat": 1}):
        drawn.add(float(replace(done, **other).transform(CPU).apply(batch_of(images[:1]))[1]["target"]))
    assert len(drawn) == 4


# ---- the benchmark ----


@dataclass(frozen=True)
class Ramps(EvaluationData):
    """Images that grow brighter along a heading between -`widest` and `widest` degrees, and a little noise."""

    size: int = 16
    limit: int | None = 150
    widest: float = 80.0

    def samples(self, split: str, *, size: int | None = None, mode: str = "scene") -> Samples:
        side, count = size or self.size, self.limit or 150
        generator = np.random.default_rng(len(split))
        line = (np.arange(side) - (side - 1) / 2) / self.size
        headings = np.radians(generator.uniform(-self.widest, self.widest, size=count))
        rows = []
        for index, heading in enumerate(headings):
            ramp = 128 + 70 * (np.cos(heading) * line[None] + np.sin(heading) * line[:, None])
            image = np.clip(ramp + generator.normal(0, 2, (3, side, side)), 0, 255).astype(np.uint8)
            rows.append({"index": index, "image": torch.from_numpy(image)})
        told = {"dataset": "ramps", "split": split, "size": side, "limit": count, "widest": self.widest}
        return Samples(rows, told, {}, lambda index, row: row, list(range(count)))


class Heading(torch.nn.Module):
    """Stands for an encoder whose one feature is the heading of a ramp in radians, or else its direction: exactly equivariant."""

    name, device, width = "heading", CPU, 1

    def __init__(self, knows: bool = True, direction: bool = False) -> None:
        super().__init__()
        self.knows, self.direction, self.fingerprint = knows, direction, f"heading {knows} {direction}"

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255 if images.dtype == torch.uint8 else images

    def tokens(self, images: torch.Tensor) -> Tokens:
        right, down = images.diff(dim=3).mean(dim=(1, 2, 3)), images.diff(dim=2).mean(dim=(1, 2, 3))
        heading = torch.atan2(down, right) if self.knows else images[:, 0, 0, 0] * 977 % 1
        feature = torch.stack([heading.cos(), heading.sin()], dim=1) if self.direction else heading[:, None]
        return Tokens(feature[:, None, None], None, feature)

    def random_twin(self, seed: int) -> "Heading":
        return Heading(False, self.direction)


def test_an_equivariant_feature_is_told_apart_from_all_floors() -> None:
    settings = EquivarianceSettings(transformations=("rotation",), mlp_epochs=20, mlp_hidden_size=64, padded=False)
    encoder: Any = Heading()
    result = measure_equivariance(encoder, Ramps(), QUIET, settings)
    floors = result.details["floors"]["rotation_r2_ridge"]
    print(result.metrics, result.details["floors"])
    assert result.metrics["rotation_r2_ridge"] > 0.98
    assert floors["transformed image alone"] < 0.45  # headings of 160 degrees and 90 of rotation
    assert abs(floors["random weights"]) < 0.1
    assert set(floors) == set(FLOORS)
    errors = result.details["rotation_error_by_angle"]
    assert max(errors["model"]) < 5 < max(errors["random weights"])
    assert errors["angle"] == pytest.approx(np.arange(-40, 41, 10))
    by_angle = result.details["rotation_r2_by_angle"]
    assert min(by_angle["model"]) > 0.98
    assert by_angle["mean angle"][0] < -1 < 0.9 < by_angle["mean angle"][4]
    assert set(by_angle) == {"angle", "model", *FLOORS, "mean angle"}
    for picture in result.pictures.values():
        assert min(picture().size) > 100
    nothing: Any = Heading(False)
    result = measure_equivariance(nothing, Ramps(), QUIET, replace(settings, mlp_epochs=0))
    assert abs(result.metrics["rotation_r2_ridge"]) < 0.1
    assert result.details["beats_all_floors"]["rotation"] == {"ridge": False, "bilinear": False}


def test_r2_by_angle_adds_up_to_r2() -> None:
    generator = np.random.default_rng(0)
    angles = generator.uniform(-45, 25, size=500)
    predictions = 0.6 * angles + generator.normal(0, 5, size=500)
    by_angle, errors = r2_by_angle(predictions, angles)
    counts, _ = np.histogram(angles, bins=9, range=(-45, 45))
    filled = counts > 0
    assert filled.tolist() == [True] * 7 + [False] * 2
    assert np.isnan(by_angle[~filled]).all()
    assert np.isnan(errors[~filled]).all()
    assert counts[filled] @ by_angle[filled] / 500 == pytest.approx(r2_score(angles, predictions))
    assert counts[filled] @ errors[filled] / 500 == pytest.approx(np.abs(predictions - angles).mean())
    middle = np.abs(angles) < 5
    expected = 1 - np.square(predictions - angles)[middle].mean() / angles.var()
    assert by_angle[4] == pytest.approx(expected)  # its own variance would give less than 0


@pytest.mark.parametrize("config_name", [None, "object"])
def test_scenes_are_seen_from_above_whatever_the_mode_and_it_is_told(config_name: str | None) -> None:
    settings = EquivarianceSettings(("rotation",), transformations_per_image=1, components=0, mlp_epochs=0)
    data = EvaluationData(size=32, limit=12, config_name=config_name)
    options = replace(QUIET, bootstrap=0)
    result = measure_equivariance(load_encoder(small_model(size=32)), data, options, settings)
    plain = measure_equivariance(load_encoder(small_model(size=32)), replace(data, config_name=None), options, settings)
    assert result.metrics == plain.metrics
    assert (result.details["mode"], result.details["padded_mode"]) == ("topdown", "scene")


def test_where_all_directions_are_alike_only_products_tell_the_angle() -> None:
    """
    The angle is drawn independently of the image, and the turned image is as likely with every angle: so neither image's
    features correlate with it, and no sum of a function of each predicts it.
    """
    settings = EquivarianceSettings(transformations=("rotation",), mlp_epochs=0, padded=False)
    encoder: Any = Heading(direction=True)
    result = measure_equivariance(encoder, Ramps(limit=300, widest=180.0), QUIET, settings)
    print(result.metrics, result.details["floors"])
    assert result.metrics["rotation_r2_ridge"] == pytest.approx(0, abs=0.03)
    assert (
        result.metrics["rotation_r2_bilinear"] > 0.97
    )  # r^2 sin(angle) is linear in the products, up to 45 degrees nearly
    for floor in ("transformed image alone", "random weights"):
        assert result.details["floors"]["rotation_r2_bilinear"][floor] == pytest.approx(0, abs=0.05)
    assert result.details["beats_all_floors"]["rotation"]["ridge"] is False


def test_products_are_regressed_on_as_scikit_learn_does() -> None:
    generator = np.random.default_rng(0)
    before, after = (generator.normal(size=(300, 3)).astype(np.float32) for _ in range(2))
    target = (before[:, :1] * after[:, 1:2] - 0.5 * after[:, 2:]) + 0.1 * generator.normal(size=(300, 1))
    pairs = Pairs([(before, after)], [target])
    found = BilinearRidge(pairs, np.arange(300) < 60, [0.01], 3, CPU).predict(pairs)
    both = np.concatenate([before, after]).astype(np.float64)
    turned = PCA(3).fit(both)
    first, second = turned.transform(before), turned.transform(after)
    products = np.concatenate([first, second, (first[:, :, None] * second[:, None, :]).reshape(300, 9)], axis=1)
    scaled = StandardScaler().fit_transform(products)
    expected = SklearnRidge(alpha=0.01 * 300).fit(scaled, target).predict(scaled)
    np.testing.assert_allclose(found, expected.reshape(found.shape), atol=1e-5)
    assert np.square(found - target).mean() < 0.02 * target.var()
    few = BilinearRidge(pairs, np.arange(300) < 60, [0.01], 1, CPU)
    assert np.square(few.predict(pairs) - target).mean() > 0.3 * target.var()


def test_a_floor_is_beaten_only_by_more_than_chance() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(400, 1))

    def fitted(noise: float) -> Fitted:
        return Fitted(truth + noise * generator.normal(size=truth.shape), truth, 100)

    good, other, bad = fitted(0.5), fitted(0.51), fitted(0.9)
    assert _is_above(good, bad, QUIET)
    assert not _is_above(bad, good, QUIET)
    assert not _is_above(good, other, QUIET)
    assert not _is_above(other, good, QUIET)
    hopeless, worse = fitted(1.5), fitted(3.0)
    assert not _is_above(hopeless, worse, QUIET)  # below 0 there is nothing to beat with


def test_padding_gives_translation_away_and_borderless_images_do_not(tmp_path: Path) -> None:
    encoder: Encoder = load_encoder(small_model())
    settings = EquivarianceSettings(
        transformations=("translation",), components=0, mlp_epochs=0, transformations_per_image=2
    )
    options = replace(QUIET, cache_dir=tmp_path, bootstrap=0)
    data = RenderedData(limit=150)
    result = measure_equivariance(encoder, data, options, settings)
    print(result.metrics, result.details["floors"])
    assert result.metrics["translation_r2_ridge_zeros"] > 0.75
    assert result.metrics["translation_r2_ridge_zeros_variance_weighted"] > 0.75
    for name in ("translation_r2_ridge", "translation_r2_ridge_reflection"):
        assert result.metrics[name] < 0.2
    assert result.details["floors"]["translation_r2_ridge_zeros"]["transformed image alone"] > 0.75
    assert result.details["floors"]["translation_r2_ridge"]["RGB thumbnail"] < 0.2
    assert list(tmp_path.iterdir())
    again = measure_equivariance(encoder, data, options, settings)
    plain = measure_equivariance(encoder, data, replace(options, cache_dir=None, batch_size=48), settings)
    assert again.metrics == result.metrics
    assert plain.metrics == pytest.approx(result.metrics, abs=2e-3)


def test_settings_out_of_range_are_told() -> None:
    with pytest.raises(ValueError, match="transformations must be some of rotation, .* got shear"):
        EquivarianceSettings(transformations=("shear",))
    with pytest.raises(ValueError, match="transformations_per_image must be at least 1"):
        EquivarianceSettings(transformations_per_image=0)


def test_larger_images_leave_as_much_on_both_sides() -> None:
    for size in (8, 33, SIZE, 96, 224):
        assert (larger_size(size) - size) % 2 == 0
        assert larger_size(size) >= size * 2**0.5 + 1
