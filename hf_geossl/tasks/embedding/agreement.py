"""Whether two small images show the same picture: correlation of what stands out of the noise of compression.

Images are compared by frequencies. Neighbouring pixels of any picture are alike, so that coarse frequencies alone would call one
sky a copy of another; and compression and scaling change the fine ones. So each band of frequencies has the same say, as far as
its power stands out of what a copy may have lost.
"""

import math

import torch

SIDE = 24  # pixels of the images that are compared
LEAST_CONTENT = 25.0  # coefficients that stand out of the noise; with fewer, images agree by chance
LEAST_AGREEMENT = 0.5
_LARGEST_SHIFT = 6.0  # of mean colours, in levels of 255
_NOISE = (8.0, 16.0, 16.0)  # squared levels of brightness and two colours: rounding and JPEG of middling quality
_EDGES = (0.5, 1.2, 2.3, 3.5, 5.5, 8.5, 12.5, 18.5)  # where bands of frequencies begin, in half waves an image
_LOST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.12, 0.33)  # of the power of each band, by scaling down and up


def spectra(images: torch.Tensor) -> torch.Tensor:
    """Transforms small images to frequencies of brightness and two colours.

    Args:
        images (`torch.Tensor` of shape `(images, 24, 24, 3)`): RGB, 0 to 255.

    Returns:
        `torch.Tensor` of shape `(images, 576, 3)`: coefficients of the orthonormal cosine transform, float32.
    """
    waves = torch.arange(SIDE, dtype=torch.float64)
    cosines = torch.cos(math.pi * (waves + 0.5) * waves[:, None] / SIDE) * math.sqrt(2 / SIDE)
    cosines[0] /= math.sqrt(2)
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    made = torch.einsum("ui,nijc,vj,dc->nuvd", cosines, images.double(), cosines, colours)
    return made.flatten(1, 2).float()


def content(one: torch.Tensor) -> torch.Tensor:
    """How many coefficients of images stand out of the noise, `(images,)`, of `spectra` of shape `(images, 576, 3)`."""
    return _weights(_band_powers(one)).sum(dim=(1, 2))


def agreement(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Correlates pairs of images.

    Args:
        one, other (`torch.Tensor` of shape `(pairs, 576, 3)`): Of `spectra`.

    Returns:
        `torch.Tensor` of shape `(pairs,)`: 1 of equal pictures, about 0 of unrelated ones; -1 where their mean colours differ.
    """
    power = (_band_powers(one) + _band_powers(other)) / 2
    weights = _weights(power)
    correlations = _in_bands(one * other) / power.clamp(min=1e-9)
    total = (weights * correlations).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp(min=1e-9)
    shift = (one[:, 0] - other[:, 0]).abs().amax(dim=1) / SIDE
    return torch.where(shift <= _LARGEST_SHIFT, total, torch.full_like(total, -1))


def _bands() -> torch.Tensor:
    """Which frequencies each band averages, `(bands, 576)`; rows add up to 1. The mean colour is in none."""
    waves = torch.arange(SIDE)
    radius = (waves[:, None].square() + waves.square()).float().sqrt().flatten()
    number = torch.bucketize(radius, torch.tensor(_EDGES))
    return torch.nn.functional.one_hot(number, len(_EDGES) + 1)[:, 1:].T.float()


def _in_bands(values: torch.Tensor) -> torch.Tensor:
    """Means of values `(images, 576, 3)` in bands, `(images, bands, 3)`."""
    members = _bands()
    return torch.einsum("bf,nfc->nbc", members / members.sum(dim=1, keepdim=True), values)


def _band_powers(one: torch.Tensor) -> torch.Tensor:
    return _in_bands(one.square())


def _weights(power: torch.Tensor) -> torch.Tensor:
    """Of each band the number of its coefficients, as far as they stand out of the noise, `(images, bands, 3)`."""
    noise = power.new_tensor(_NOISE) + power.new_tensor(_LOST)[:, None] * power
    shares = ((power - noise).clamp(min=0) / power.clamp(min=1e-9)).square()
    return shares * _bands().sum(dim=1)[:, None]
