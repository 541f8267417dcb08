"""Regression on pairs of features: ridge, also on products; rows are read in blocks."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

BLOCK = 4096  # rows in memory at a time


def second_moments(blocks: Iterable[torch.Tensor], width: int, device: torch.device) -> torch.Tensor:
    """Sums of products of `[1, row]` over rows of a width, which come in blocks, in float64."""
    moments = torch.zeros(1 + width, 1 + width, dtype=torch.float64, device=device)
    for block in blocks:
        rows = torch.cat([torch.ones_like(block[:, :1]), block], dim=1)
        moments.addmm_(rows.T, rows)
    return moments


class Pairs:
    """Features of images that were transformed several times each, and the targets that are regressed on them.

    Args:
        parts (`Sequence[Sequence[numpy.ndarray]]`): For each transformation the features `(images, width)` that stand side
            by side in a row, such as those of the image and of the transformed image. They may lie on the disk.
        targets (`Sequence[numpy.ndarray]`): For each transformation its parameters `(images, outputs)`.

    Attributes:
        images, width, outputs (`int`): Numbers of images, features and targets.
    """

    def __init__(self, parts: Sequence[Sequence[np.ndarray]], targets: Sequence[np.ndarray]) -> None:
        self.parts, self.targets = parts, targets
        self.images, self.outputs = targets[0].shape
        self.width = sum(part.shape[1] for part in parts[0])

    def rows(self, transformation: int, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `(rows, width)`, float32, and targets `(rows, outputs)`, float64, of some images."""
        x = np.concatenate([part[images] for part in self.parts[transformation]], axis=1, dtype=np.float32)
        return torch.from_numpy(x), torch.from_numpy(np.asarray(self.targets[transformation][images], np.float64))

    def blocks(self, images: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`rows` of some images for every transformation, block by block."""
        for transformation in range(len(self.parts)):
            for start in range(0, len(images), BLOCK):
                yield self.rows(transformation, images[start : start + BLOCK])

    @property
    def truth(self) -> np.ndarray:
        """All targets, `(transformations * images, outputs)`."""
        return np.concatenate([np.asarray(target, dtype=np.float64) for target in self.targets])


def fit_ridge(
    train: torch.Tensor, test: torch.Tensor, outputs: int, penalties: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Ridge regression in float64, from sums of products alone.

    Minimises the mean squared error plus a penalty times the squared weights of standardised features. The penalty is taken
    with the smallest mean over outputs of the squared error relative to the variance on held-out rows. The regression is then
    fitted to all rows.

    Args:
        train, test (`torch.Tensor` of shape `(k, k)`): `second_moments` of `[features, targets]` of rows that are fitted and
            of those that are held out.
        outputs (`int`): Number of targets.
        penalties (`Sequence[float]`): To choose from.

    Returns:
        Weights `(features, outputs)`, biases `(outputs,)`, and the penalty.
    """
    errors = []
    variance = test.diagonal()[-outputs:] / test[0, 0] - (test[0, -outputs:] / test[0, 0]).square()
    for weight, bias in _solve_ridge(train, outputs, penalties):
        # residual = [1, x, y] @ coefficients
        coefficients = torch.cat([-bias[None], -weight, torch.eye(outputs, device=test.device).double()])
        squares = ((test @ coefficients) * coefficients).sum(dim=0) / test[0, 0]
        errors.append(float((squares / variance.clamp_min(1e-12)).mean()))
    penalty = float(penalties[int(np.argmin(errors))])
    [(weight, bias)] = _solve_ridge(test + train, outputs, [penalty])
    return weight, bias, penalty


def _solve_ridge(
    moments: torch.Tensor, outputs: int, penalties: Sequence[float]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights `(features, outputs)` and biases `(outputs,)` for each penalty."""
    mean = moments[0] / moments[0, 0]
    covariance = moments / moments[0, 0] - torch.outer(mean, mean)
    features, targets = slice(1, -outputs), slice(-outputs, None)
    scale = covariance.diagonal()[features].clamp_min(0).sqrt()
    scale = torch.where(scale > 1e-9, scale, 1.0)  # constant features contribute nothing
    correlation = covariance[features, features] / torch.outer(scale, scale)
    wanted = covariance[features, targets] / scale[:, None]
    solutions = []
    for penalty in penalties:  # a factorization each takes less than one eigendecomposition for all, on a GPU by far
        shifted = correlation.clone()
        shifted.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if failed:  # below the rounding of the products
            values, vectors = torch.linalg.eigh(correlation)
            weight = vectors @ ((vectors.T @ wanted) / (values.clamp_min(0) + penalty)[:, None])
        else:
            weight = torch.cholesky_solve(wanted, factor)
        weight = weight / scale[:, None]
        solutions.append((weight, mean[targets] - mean[features] @ weight))
    return solutions


class Ridge:
    """Ridge regression of pairs, see `fit_ridge`.

    The penalty is chosen on the images `held_out` (`(images,)`, bool) with all of their transformations.
    """

    def __init__(self, pairs: Pairs, held_out: np.ndarray, penalties: Sequence[float], device: torch.device) -> None:
        self.device = device
        first = pairs.rows(0, np.arange(min(BLOCK, pairs.images)))[0].to(device, torch.float64)
        self._shift = first.mean(dim=0)  # so that the products below do not cancel
        images = np.arange(pairs.images)
        train, test = (self._moments(pairs, images[chosen]) for chosen in (~held_out, held_out))
        self._weight, self._bias, self.penalty = fit_ridge(train, test, pairs.outputs, penalties)

    def _moments(self, pairs: Pairs, images: np.ndarray) -> torch.Tensor:
        """Sums of products of `[1, features, targets]`."""
        blocks = (
            torch.cat([x.to(self.device, torch.float64) - self._shift, y.to(self.device)], dim=1)
            for x, y in pairs.blocks(images)
        )
        return second_moments(blocks, pairs.width + pairs.outputs, self.device)

    def predict(self, pairs: Pairs) -> np.ndarray:
        """Predictions `(transformations * images, outputs)`."""
        blocks = (x.to(self.device, torch.float64) for x, _ in pairs.blocks(np.arange(pairs.images)))
        return torch.cat([((x - self._shift) @ self._weight + self._bias).cpu() for x in blocks]).numpy()


class _Products(Pairs):
    """Rows of leading components of both images and of all products of one of the first and one of the second."""

    def __init__(self, pairs: Pairs, mean: torch.Tensor, basis: torch.Tensor) -> None:
        super().__init__(pairs.parts, pairs.targets)
        self._mean, self._basis = mean, basis
        self.width = 2 * basis.shape[1] + basis.shape[1] ** 2

    def rows(self, transformation: int, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = super().rows(transformation, images)
        parts = x.to(self._mean).unflatten(1, (-1, len(self._mean)))  # one part where an image stands alone
        first, second = ((parts[:, place] - self._mean) @ self._basis for place in (0, -1))
        return torch.cat([first, second, (first[:, :, None] * second[:, None, :]).flatten(1)], dim=1), y


class BilinearRidge:
    """Ridge regression on products of the features of the two images.

    It can compare images where a sum of a function of each cannot: of images whose directions are all alike, neither image by
    itself correlates with the angle between them, so that `Ridge` fails on any features.

    Multiplied are so many leading principal components of the features of both images together, at most all; the parts of the
    pairs are of one width. The rest is as in `Ridge`.
    """

    def __init__(
        self, pairs: Pairs, held_out: np.ndarray, penalties: Sequence[float], components: int, device: torch.device
    ) -> None:
        width = pairs.parts[0][0].shape[1]
        first = pairs.rows(0, np.arange(min(BLOCK, pairs.images)))[0].to(device, torch.float64)
        shift = first.unflatten(1, (-1, width)).mean(dim=(0, 1))
        blocks = (
            x.to(device, torch.float64).unflatten(1, (-1, width)).flatten(0, 1) - shift
            for x, _ in pairs.blocks(np.arange(pairs.images))
        )
        moments = second_moments(blocks, width, device)
        mean = moments[0, 1:] / moments[0, 0]
        _, vectors = torch.linalg.eigh(moments[1:, 1:] / moments[0, 0] - torch.outer(mean, mean))
        self._mean, self._basis = mean + shift, vectors[:, -min(components, width) :]
        self._ridge = Ridge(_Products(pairs, self._mean, self._basis), held_out, penalties, device)
        self.penalty = self._ridge.penalty

    def predict(self, pairs: Pairs) -> np.ndarray:
        """Predictions `(transformations * images, outputs)`."""
        return self._ridge.predict(_Products(pairs, self._mean, self._basis))
