"""What the spectrum of features says without labels: how many directions they use, and how evenly."""

import torch
from torch.nn import functional as F

RANKME_EPSILON = 1e-7
LIDAR_EPSILON, LIDAR_DELTA = 1e-8, 1e-4


def spread(features: torch.Tensor) -> float | None:
    """How evenly normalised features of shape `(rows, channels)` point in all directions; None for a single row.

    It is the norm of the channels' standard deviations: 0 where all features are the same, 1 where they are even.
    """
    if len(features) < 2:
        return None
    return F.normalize(features.float(), dim=-1).std(dim=0, correction=0).norm().item()


def rankme(features: torch.Tensor) -> float:
    """The effective rank of features `(rows, channels)`: exp(-sum p ln p) with p = s / sum s + 1e-7, s the singular values.

    It lies between 1 and the smaller of the two sizes.

    Source: RankMe (arXiv 2210.02885), equations 1 and 2.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + RANKME_EPSILON
    return torch.special.entr(shares).sum().exp().item()


def lidar(features: torch.Tensor) -> float | None:
    """The effective rank of what tells images apart, in units of what differs between views of one image.

    With S_b the covariance of the images' mean features and S_w the mean covariance of the views of an image about it,
    plus 1e-4 on its diagonal, it is exp(-sum p ln p) with p = l / sum l + 1e-8, l the eigenvalues of
    S_w^(-1/2) S_b S_w^(-1/2).

    Args:
        features (`torch.Tensor` of shape `(images, views, channels)`): At least 2 views of each image.

    Returns:
        `float` or None: None for a single image or view.

    Source: LiDAR (arXiv 2312.04000), section 4; covariances divide by the counts.
    """
    images, views, channels = features.shape
    if images < 2 or views < 2:
        return None
    features = features.double()
    of_images = features.mean(dim=1)
    inside = (features - of_images[:, None]).flatten(0, 1)  # (images * views, channels)
    within = inside.T @ inside / len(inside) + LIDAR_DELTA * torch.eye(channels).to(features)
    between = of_images - of_images.mean(dim=0)  # (images, channels)
    # the eigenvalues of S_w^(-1/2) S_b S_w^(-1/2) are the squared singular values of L^(-1) B^T, with S_w = L L^T
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(within), between.T, upper=False)
    values = torch.linalg.svdvals(whitened).square()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + LIDAR_EPSILON
    return torch.special.entr(shares).sum().exp().item()


def alpha_req(features: torch.Tensor) -> float | None:
    """The decay of the spectrum: the slope a of the fit ln l_i = c - a ln i to the eigenvalues l of the covariance.

    About 1 is what generalises best; far above it few directions have all the variance, far below it noise has much. Least
    squares over the first half of the eigenvalues that are not 0, since the last ones of few images fall faster.

    Args:
        features (`torch.Tensor` of shape `(rows, channels)`): Features of different images.

    Returns:
        `float` or None: None where fewer than 4 eigenvalues are not 0.

    Source: alpha-ReQ (Agrawal et al., NeurIPS 2022, "Assessing representation quality in self-supervised learning by
    measuring eigenspectrum decay").
    """
    features = features.double()
    values = torch.linalg.svdvals(features - features.mean(dim=0)).square() / max(len(features), 1)
    values = values[values > 1e-12 * values.max()]
    if len(values) < 4:
        return None
    logs = values[: len(values) // 2].log()
    places = torch.arange(1, len(logs) + 1).to(logs).log()
    places = places - places.mean()
    return -((places * (logs - logs.mean())).sum() / places.square().sum()).item()


def mean_entropy(probabilities: torch.Tensor) -> float:
    """The mean entropy of predictions `(rows, prototypes)` in nats: ln prototypes where they say nothing, 0 where they are sure.

    Source: the quantity that DINO (arXiv 2104.14294, figure 7) watches for collapse.
    """
    return torch.special.entr(probabilities.float()).sum(dim=-1).mean().item()
