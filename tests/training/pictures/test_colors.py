"""Colours of patches: principal components by a singular value decomposition, and places by hand."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from skimage.color import deltaE_ciede2000, rgb2lab

from hf_geossl.training.pictures.colors import (
    FeatureColors,
    area_colours,
    color_code,
    principal_components,
    turned_towards,
)


def test_colors_are_the_principal_components_between_two_percentiles() -> None:
    tokens = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    flat = tokens.double().flatten(0, 2).numpy()
    _, _, vectors = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    components = (flat - flat.mean(axis=0)) @ vectors[:3].T * np.where(vectors[:3].sum(axis=1) < 0, -1, 1)
    low, high = np.quantile(components, 0.02, axis=0), np.quantile(components, 0.98, axis=0)
    expected = np.clip((components - low) / (high - low), 0, 1).reshape(2, 3, 4, 3)
    np.testing.assert_allclose(principal_components(tokens), expected, atol=1e-5)


def test_places_are_coloured_from_corner_to_corner() -> None:
    code = color_code(3)
    assert code.dtype == torch.uint8
    assert code[0, 0].tolist() == [235, 64, 52]
    assert code[0, 2].tolist() == [250, 204, 40]
    assert code[2, 0].tolist() == [52, 84, 224]
    assert code[2, 2].tolist() == [40, 190, 120]
    assert (code[1, 1].float() - code[::2, ::2].float().mean((0, 1))).abs().max() <= 0.5


def test_features_that_are_turned_and_scaled_come_back_and_others_lie_nearest() -> None:
    """By scipy's solution of the orthogonal Procrustes problem."""
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(2, 3, 4, 6, generator=generator).double()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator).double()).Q
    same = turned_towards(3 * others @ rotation + 1, others)
    torch.testing.assert_close(same, others)
    colors = FeatureColors.fit(others)
    torch.testing.assert_close(colors.paint(same), principal_components(others))

    tokens = torch.randn(2, 3, 4, 6, generator=generator)
    first, second = (features.double().flatten(0, 2).numpy() for features in (tokens, others))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    turn, _ = orthogonal_procrustes(first, second)
    expected = first @ turn * np.linalg.norm(second) / np.linalg.norm(first) + others.flatten(0, 2).mean(dim=0).numpy()
    np.testing.assert_allclose(turned_towards(tokens, others).flatten(0, 2), expected, atol=1e-9)


def test_equal_features_have_one_colour() -> None:
    colours = principal_components(torch.ones(1, 2, 2, 4))
    assert torch.isfinite(colours).all()
    assert len(colours.reshape(4, 3).unique(dim=0)) == 1


@pytest.mark.parametrize(("count", "least"), [(7, 21), (14, 18), (20, 11), (150, 4.9)])
def test_colours_of_classes_differ_as_people_see_it(count: int, least: float) -> None:
    colours = area_colours(count)
    assert colours.shape == (count, 3)
    assert 0 <= colours.min() <= colours.max() <= 1
    places = rgb2lab(colours[None])[0]
    differences = deltaE_ciede2000(places[:, None], places[None]) + 100 * np.eye(count)
    assert differences.min() > least
    np.testing.assert_array_equal(area_colours(200)[:count], colours)
