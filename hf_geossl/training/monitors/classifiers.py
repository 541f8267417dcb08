"""Classifiers of frozen features that need no training: nearest neighbours, and ridge regression in closed form."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

QUERIES, NEIGHBOURS = 512, 32768  # images in a block, whose similarities take 64 MB
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # in units of the features' mean squared singular value


def vote(
    queries: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    neighbours: Sequence[int],
    num_classes: int,
    temperature: float,
    device: torch.device | str = "cpu",
) -> dict[int, np.ndarray]:
    """Votes of the nearest neighbours by cosine, each weighing exp(cosine / temperature).

    Args:
        queries (`numpy.ndarray` of shape `(queries, width)`): Features of the images that are classified.
        features (`numpy.ndarray` of shape `(images, width)`): Features of the images that vote, of classes `labels`.
        neighbours (`Sequence[int]`): Numbers of neighbours, up to the number of images.

    Returns:
        `dict[int, numpy.ndarray]`: For each number of neighbours the votes, `(queries, num_classes)`, relative to that of
        a neighbour of cosine 1.
    """
    most = max(neighbours)
    classes = torch.from_numpy(np.array(labels)).long().to(device)
    blocks: dict[int, list[np.ndarray]] = {k: [] for k in neighbours}

    def load(rows: np.ndarray) -> torch.Tensor:
        return F.normalize(torch.from_numpy(np.array(rows, dtype=np.float32)).to(device), dim=1)

    for start in range(0, len(queries), QUERIES):
        query = load(queries[start : start + QUERIES])
        cosines = query.new_empty(len(query), 0)
        places = torch.empty(len(query), 0, dtype=torch.long, device=device)
        for first in range(0, len(features), NEIGHBOURS):
            block = query @ load(features[first : first + NEIGHBOURS]).T
            # (Q, k) so far and (Q, block): the nearest of both
            best, order = block.topk(min(most, block.shape[1]), dim=1)
            cosines, places = torch.cat([cosines, best], dim=1), torch.cat([places, order + first], dim=1)
            cosines, order = cosines.topk(min(most, cosines.shape[1]), dim=1)
            places = places.gather(1, order)
        weights = ((cosines - 1) / temperature).exp()
        for k in neighbours:
            votes = weights.new_zeros(len(query), num_classes)
            blocks[k].append(votes.scatter_add_(1, classes[places[:, :k]], weights[:, :k]).cpu().numpy())
    return {k: np.concatenate(votes) for k, votes in blocks.items()}


class Ridge:
    """Least squares of the classes' indicators on standardised features, with the penalty whose squared error is least when each is left out.

    Args:
        features (`torch.Tensor` of shape `(rows, channels)`): Of at least 2 rows.
        labels (`torch.Tensor` of shape `(rows,)`, int64): Their classes.
        num_classes (`int`): How many classes there are.

    Attributes:
        left_out (`torch.Tensor` of shape `(rows, num_classes)`): Scores of each row by the fit to all others, in closed
            form: y - (y - fitted) / (1 - h), h the diagonal of the hat matrix. The deviations of the features, the classes'
            shares (which else are smaller for the class of the row) and the penalty are those of all rows.

    Source: Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, 2nd edition, equation 7.64.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> None:
        features = features.double()
        self._mean, self._scale = features.mean(dim=0), features.std(dim=0, correction=0).clamp_min(1e-8)
        left, values, right = torch.linalg.svd((features - self._mean) / self._scale, full_matrices=False)
        targets = F.one_hot(labels, num_classes).double()
        self._intercept = targets.mean(dim=0)
        turned = left.T @ (targets - self._intercept)
        best = float("inf")
        for penalty in PENALTIES:
            shrink = values.square() / (values.square() + penalty * values.square().mean().clamp_min(1e-12))
            fitted = self._intercept + left @ (shrink[:, None] * turned)
            leverage = (left.square() @ shrink + 1 / len(features)).clamp_max(1 - 1e-9)
            scores = targets - (targets - fitted) / (1 - leverage)[:, None]
            scores = scores + (targets - self._intercept) / (len(features) - 1)  # the shares of all rows
            error = (targets - scores).square().mean().item()
            if error < best:
                best, self.left_out = error, scores
                self._weights = right.T @ ((shrink / values.clamp_min(1e-12))[:, None] * turned)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Scores `(rows, num_classes)` of other features `(rows, channels)`."""
        return self._intercept + (features.double() - self._mean) / self._scale @ self._weights


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows `(rows, classes)` whose highest score is the label's."""
    return (scores.argmax(dim=1) == labels).double().mean().item()
