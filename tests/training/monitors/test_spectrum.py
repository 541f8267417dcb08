"""Measures of the spectrum, compared with formulas that are written out and with scipy."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from hf_geossl.training.monitors.spectrum import alpha_req, lidar, mean_entropy, rankme, spread


def _features(rows: int = 30, channels: int = 12, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, channels)) @ np.diag(0.7 ** np.arange(channels)) + 0.3


def test_rankme_is_the_papers_formula() -> None:
    features = _features()
    values = scipy.linalg.svdvals(features)
    shares = values / np.abs(values).sum() + 1e-7
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert rankme(torch.from_numpy(features).float()) == pytest.approx(expected, rel=1e-5)
    assert rankme(torch.ones(20, 8)) == pytest.approx(1.0, abs=1e-4)
    assert rankme(torch.eye(8)) == pytest.approx(8.0, abs=1e-4)


def test_lidar_is_the_papers_formula() -> None:
    generator = np.random.default_rng(1)
    features = _features(20, 6)[:, None] + 0.2 * generator.normal(size=(20, 3, 6))
    mean = features.mean(axis=(0, 1))
    between, within = np.zeros((6, 6)), 1e-4 * np.eye(6)
    for image in features:
        between += np.outer(image.mean(axis=0) - mean, image.mean(axis=0) - mean) / 20
        for view in image:
            within += np.outer(view - image.mean(axis=0), view - image.mean(axis=0)) / 60
    root = scipy.linalg.inv(scipy.linalg.sqrtm(within))
    values = scipy.linalg.eigvalsh(root @ between @ root)
    shares = values / np.abs(values).sum() + 1e-8
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert lidar(torch.from_numpy(features).float()) == pytest.approx(expected, rel=1e-4)
    assert lidar(torch.zeros(4, 1, 6)) is None


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5])
def test_alpha_req_finds_the_exponent_of_a_power_law(exponent: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 32, generator=generator, dtype=torch.double)
    basis, _ = torch.linalg.qr(rows - rows.mean(dim=0))  # columns of length 1 whose mean is 0
    features = basis * torch.arange(1, 33).double() ** (-exponent / 2)
    assert alpha_req(features) == pytest.approx(exponent, rel=1e-6)


def test_alpha_req_is_the_slope_of_a_least_squares_fit() -> None:
    features = _features()
    values = np.linalg.eigvalsh(np.cov(features.T, bias=True))[::-1][:6]  # the first half of 12
    expected = -scipy.stats.linregress(np.log(np.arange(1, 7)), np.log(values)).slope
    assert alpha_req(torch.from_numpy(features)) == pytest.approx(expected, rel=1e-6)
    assert alpha_req(torch.ones(10, 8)) is None


def test_spread_and_entropy_are_their_formulas() -> None:
    features = _features()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert spread(torch.from_numpy(features)) == pytest.approx(math.sqrt(sum(np.var(unit, axis=0))), rel=1e-5)
    assert spread(torch.ones(1, 8)) is None
    probabilities = scipy.special.softmax(features, axis=1)
    expected = np.mean([scipy.stats.entropy(row) for row in probabilities])
    assert mean_entropy(torch.from_numpy(probabilities)) == pytest.approx(expected, rel=1e-5)
    assert mean_entropy(torch.full((5, 32), 1 / 32)) == pytest.approx(math.log(32))
