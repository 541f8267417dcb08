"""Whether two small images show the same picture: what compression and scaling would have to change, and what agrees beside that.

Images are compared at places: squares of an image, at four scales. Neighbouring pixels of any picture are alike and its
contrasts lie in a few places, so that one correlation would call one sky, or one bright corner, a copy of another. So each place
has the same say, as far as it stands out of the noise; and how much noise there may be, the worst part of the two says: a copy's
brightness is off by no more than its own edges moved by a pixel, and what compression did.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SIDE = 24  # pixels of the images that are compared
LEAST_PLACES = 3  # that stand out of the noise; with fewer, images agree by chance
_ENOUGH_PLACES = 7  # with so many, copies may differ as JPEG of quality 30 does
_LEAST_AGREEMENT, _CLOSE_AGREEMENT = 0.6, 0.85  # of enough places, of fewer
_LARGEST_CHANGE, _SMALL_CHANGE = 50.0, 6.0  # of brightness where it is worst, in squared levels of 255; likewise
_LARGEST_SHIFT = 10.0  # of mean colours, in levels of the orthonormal ones
_COMPRESSION = (3.0, 6.0, 6.0)  # squared levels of brightness and two colours that every copy may lose, a pixel of it
_ROUNDING = 1 / 6  # squared levels: two images of whole numbers
_REDUCED = 8 * SIDE  # pixels of a side of larger images before the means are taken
_PART = 4  # pixels of a part of an image whose brightness is compared
_MOVED = 1 / 8  # of the squared range of neighbours: an edge that moves by a pixel
_PLACE = 3  # a place has 3 x 3 coefficients of each of three directions


def compared_pixels(picture: Image.Image) -> np.ndarray:
    """Makes of an RGB image what is compared, `(24, 24, 3)`, uint8: exact means of areas, for fine textures change otherwise.

    Those of less than 48 pixels are enlarged first, so that their edges are as smooth as those of larger ones.
    """
    if min(picture.size) < 2 * SIDE:
        picture = picture.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
    if max(picture.size) > _REDUCED:
        width, height = (min(side, _REDUCED) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    rows, columns = _areas(picture.height), _areas(picture.width)
    means = np.einsum("ui,ijc,vj->uvc", rows, np.asarray(picture, np.float32), columns, optimize=True)
    return np.round(means).clip(0, 255).astype(np.uint8)


def _areas(pixels: int) -> np.ndarray:
    """How much of each of a row of pixels belongs to each of 24 equal parts of it, `(24, pixels)`."""
    ends, starts = np.arange(SIDE + 1) * pixels / SIDE, np.arange(pixels)
    shared = np.minimum(ends[1:, None], starts + 1) - np.maximum(ends[:-1, None], starts)
    return (shared.clip(min=0) * SIDE / pixels).astype(np.float32)


def prominent_places(images: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """How many places of images stand out of the noise of compression.

    Args:
        images (`torch.Tensor` of shape `(images, 24, 24, 3)`): of `compared_pixels`.
        sides (`torch.Tensor` of shape `(images,)`): the shorter sides of the pictures, in pixels.

    Returns:
        `torch.Tensor` of shape `(images,)`: 0 to 21.
    """
    power = _details(_colours(images)).square().mean(dim=-1)
    return _count(_shares(power, _noise(sides)))


def differences(one: torch.Tensor, other: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """Compares pairs of images.

    Args:
        one, other (`torch.Tensor` of shape `(pairs, 24, 24, 3)`): of `compared_pixels`.
        sides (`torch.Tensor` of shape `(pairs,)`): the shortest side of the two pictures, in pixels: the fewer, the more of
            compression is seen.

    Returns:
        `torch.Tensor` of shape `(pairs,)`: of the same picture 1 less the correlation of what stands out of the noise, 0 of
        equal ones to 0.4; infinite of others.
    """
    first, second = _colours(one), _colours(other)
    change = _largest_change(one, other)
    noise = torch.maximum(_noise(sides), change[:, None] / 2 * torch.tensor(_COMPRESSION) / _COMPRESSION[0])
    details = _details(first), _details(second)
    powers = [detail.square().mean(dim=-1) for detail in details]
    shares = _shares(torch.minimum(*powers), noise)
    correlations = 2 * (details[0] * details[1]).mean(dim=-1) / (powers[0] + powers[1]).clamp(min=1e-9)
    agreement = (shares * correlations).sum(dim=(1, 2)) / shares.sum(dim=(1, 2)).clamp(min=1e-9)
    shift = (first.mean(dim=(2, 3)) - second.mean(dim=(2, 3))).abs().amax(dim=1)
    count = _count(shares)
    rich = (count >= _ENOUGH_PLACES) & (agreement >= _LEAST_AGREEMENT) & (change <= _LARGEST_CHANGE)
    poor = (count >= LEAST_PLACES) & (agreement >= _CLOSE_AGREEMENT) & (change <= _SMALL_CHANGE)
    same = (rich | poor) & (shift <= _LARGEST_SHIFT)
    return torch.where(same, (1 - agreement).clamp(min=0), torch.full_like(agreement, math.inf))


def _colours(images: torch.Tensor) -> torch.Tensor:
    """Brightness and two differences of colours, orthonormal, `(images, 3, 24, 24)`."""
    axes = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    return torch.einsum("nijc,dc->ndij", images.float(), axes / axes.norm(dim=1, keepdim=True))


def _details(colours: torch.Tensor) -> torch.Tensor:
    """Coefficients of Haar's wavelets at places, `(images, 3, 21, 27)`: 4 x 4 + 2 x 2 + 1 places of 3 directions x 3 x 3."""
    found = []
    while colours.shape[-1] > _PLACE:
        corners = [colours[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
        signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
        mixed = torch.einsum("sk,knchw->ncshw", signs, torch.stack(corners))
        colours = mixed[:, :, 0]
        blocks = mixed[:, :, 1:].unflatten(4, (-1, _PLACE)).unflatten(3, (-1, _PLACE))  # (n, c, 3, rows, 3, columns, 3)
        found.append(blocks.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3))
    return torch.cat(found, dim=2)


def _noise(sides: torch.Tensor) -> torch.Tensor:
    """What compression and rounding may change of a coefficient, `(pairs, 3)`: the mean of more pixels is off by less."""
    lost = torch.tensor(_COMPRESSION) + _ROUNDING
    return lost * (SIDE / sides[:, None]).square() + _ROUNDING


def _shares(power: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """How far places of some power `(pairs, 3, 21)` stand out of noise `(pairs, 3)`: 0 to 1."""
    return ((power - noise[..., None]).clamp(min=0) / power.clamp(min=1e-9)).square()


def _count(shares: torch.Tensor) -> torch.Tensor:
    """How many places stand out; colours are alike at most of them, and none counts twice."""
    return shares.amax(dim=1).sum(dim=1)


def _largest_change(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of brightness in the part where it is largest, less that of edges that moved, `(pairs,)`."""
    grey = [image.float() @ torch.tensor([0.299, 0.587, 0.114]) for image in (one, other)]
    first, second = (values[:, None] - values.mean(dim=(1, 2))[:, None, None, None] for values in grey)
    moved = torch.minimum(_ranges(first), _ranges(second)).square() * _MOVED
    return F.avg_pool2d((first - second).square() - moved, _PART, _PART // 2).flatten(1).amax(dim=1).clamp(min=0)


def _ranges(values: torch.Tensor) -> torch.Tensor:
    """Largest less smallest of the 3 x 3 neighbours of each pixel."""
    return F.max_pool2d(values, 3, 1, 1) + F.max_pool2d(-values, 3, 1, 1)
