"""Principal components of patch features as colours."""

import numpy as np
import torch

from hf_geossl.training.pictures.features import principal_components


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
