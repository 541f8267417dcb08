"""Regressions against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from hf_geossl.evaluation.fitting.regression import BilinearRidge, Pairs, Ridge

CPU = torch.device("cpu")


def linear_pairs(seed: int, images: int, noise: float = 0.1) -> Pairs:
    """Two transformations an image whose targets are linear in the difference of the two features, and noise."""
    generator = np.random.default_rng(seed)
    weight = np.random.default_rng(0).normal(size=(6, 2))
    before = generator.normal(3.0, 2.0, size=(images, 6)).astype(np.float32)
    after = [generator.normal(size=(images, 6)).astype(np.float32) for _ in range(2)]
    targets = [(part - before) @ weight + noise * generator.normal(size=(images, 2)) for part in after]
    return Pairs([(before, part) for part in after], targets)


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
