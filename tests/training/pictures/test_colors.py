"""Colours of patches: principal components by a singular value decomposition, and places by hand."""

import numpy as np
import torch

from hf_geossl.training.pictures.colors import area_colours, color_code, principal_components


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


def test_colours_are_the_first_three_components_between_their_percentiles() -> None:
    """By numpy's singular value decomposition; the sign of a component is arbitrary, so each is compared with both."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 4, 5, 7, generator=generator) * torch.tensor([5.0, 4, 3, 0.1, 0.1, 0.1, 0.1])
    colours = principal_components(tokens).reshape(40, 3).numpy()
    flat = tokens.reshape(40, 7).double().numpy()
    flat = flat - flat.mean(axis=0)
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    for channel, direction in enumerate(directions[:3]):
        values = flat @ (direction if direction.sum() >= 0 else -direction)
        low, high = np.quantile(values, 0.02), np.quantile(values, 0.98)
        np.testing.assert_allclose(colours[:, channel], np.clip((values - low) / (high - low), 0, 1), atol=1e-5)


def test_equal_features_have_one_colour() -> None:
    colours = principal_components(torch.ones(1, 2, 2, 4))
    assert torch.isfinite(colours).all()
    assert len(colours.reshape(4, 3).unique(dim=0)) == 1


def test_colours_of_classes_are_all_different() -> None:
    colours = area_colours(150)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + np.eye(150)
    assert colours.shape == (150, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert distances[:21, :21].min() > 0.1
    assert distances.min() > 0.001
