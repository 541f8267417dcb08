"""Colours of patches: principal components by a singular value decomposition, and places by hand."""

import numpy as np
import torch

from hf_geossl.training.pictures.colors import color_code, principal_components


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
