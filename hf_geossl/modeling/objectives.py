"""Loss functions: pure functions of tensors, computed in float32 whatever the autocast."""

import torch
from torch.nn import functional as F


def overlap_cosine_loss(student_cells: torch.Tensor, teacher_cells: torch.Tensor) -> torch.Tensor:
    """GTSA's crop loss of each pair of views `(views, globals)`: minus the cosine of what both see of their overlap.

    Both arguments are pooled maps `(batch, views, globals, cells, channels)`, the teacher's already turned to the
    student's frame. The mean is over batch and cells, in [-1, 1].

    Source: arXiv 2304.08014, crop loss; epsilon 1e-12 as in the authors' code.
    """
    student = F.normalize(student_cells.float(), dim=-1, eps=1e-12)
    teacher = F.normalize(teacher_cells.float(), dim=-1, eps=1e-12)
    return -(student * teacher).sum(-1).mean(dim=(0, 3))


def patch_correspondence_loss(
    student_tokens: torch.Tensor, teacher_tokens: torch.Tensor, num_matches: int
) -> torch.Tensor:
    """GTSA's patch-correspondence loss of each pair of views `(views, globals)`.

    Every token is matched to the most similar one in the other view, and the best matches in each direction are pulled
    together. Gradient flows to the student's tokens, not through the choice.

    Args:
        student_tokens (`torch.Tensor` of shape `(batch, views, student_tokens, channels)`): Predictions.
        teacher_tokens (`torch.Tensor` of shape `(batch, globals, teacher_tokens, channels)`): Targets.
        num_matches (`int`): Matches in each direction; capped by the number of tokens.

    Returns:
        `torch.Tensor` of shape `(views, globals)`: minus the mean cosine of these matches, both directions
        averaged, in [-1, 1].

    Source: arXiv 2304.08014, patch-correspondence loss; epsilon 1e-8 as in the authors' code.
    """
    student = F.normalize(student_tokens.float(), dim=-1, eps=1e-8)
    teacher = F.normalize(teacher_tokens.float(), dim=-1, eps=1e-8).detach()
    similarity = torch.einsum("bvic,bgjc->bvgij", student, teacher)

    def mean_of_best(best: torch.Tensor) -> torch.Tensor:
        """Mean of the largest `num_matches` of the best cosines `(batch, views, globals, tokens)`."""
        return best.topk(min(num_matches, best.shape[-1]), dim=-1, sorted=False).values.mean(dim=(0, 3))

    # the gradient of a maximum goes to the place of the maximum: to the tokens of the chosen matches, and nowhere else
    return -0.5 * (mean_of_best(similarity.max(dim=-1).values) + mean_of_best(similarity.max(dim=-2).values))


def rotation_loss(rotation_logits: torch.Tensor, quarter_turns: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the predicted quarter turn, a mean over views and batch; ln 4 at chance level.

    `rotation_logits (batch, views, 4)` score 0 to 3 counter-clockwise turns, `quarter_turns (batch, views)` are those
    made.

    Source: arXiv 2304.08014, rotation prediction.
    """
    return F.cross_entropy(rotation_logits.float().flatten(0, 1), quarter_turns.long().flatten())


def location_loss(location_logits: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the predicted position in the reference, and how often it is right, in [0, 1]; both `()`.

    `location_logits (..., reference_tokens)` score every position, `positions (...)` hold the raster index of the true
    one, -1 where it lies outside. Both results are sums over this process's tokens that lie inside, divided by the mean
    number of such tokens a process. Their means over processes are the means over all these tokens; 0 where there is
    none.

    Source: arXiv 2212.02400, localisation loss; epsilon 1e-8 in the count as in the authors' code, which divides by the
    count of each device: there a token weighs the more, the fewer of its device's tokens lie inside.
    """
    logits, targets = location_logits.float(), positions.long()
    valid = targets >= 0
    count = mean_over_processes(valid.sum().float()) + 1e-8
    log_probabilities = F.log_softmax(logits, dim=-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    correct = (logits.argmax(dim=-1) == targets) & valid
    return -(log_probabilities * valid).sum() / count, correct.sum() / count


def reconstruction_loss(reconstructions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared error of reconstructed images: `1/K sum_k mean (D_k - N(u_k))^2`; no pixel is left out, black borders neither.

    Both arguments are normalised images `(batch, K, channels, height, width)`.

    Source: arXiv 2503.18753, reconstruction of intermediate transformations.
    """
    return F.mse_loss(reconstructions.float(), targets.float())


def sinkhorn(probabilities: torch.Tensor, iterations: int) -> torch.Tensor:
    """Balances soft assignments of this process's tokens `(tokens, clusters)`, positive, over clusters; float32.

    Each round divides columns by their sums over the tokens of all processes, then rows by theirs. No epsilon; rows sum
    to 1 at the end, columns are even only approximately. Without rounds they stay as they are.

    Source: arXiv 2212.02400 (after arXiv 2006.09882), as the authors' code has it.
    """
    assignments = probabilities.to(torch.float32, copy=True)
    for _ in range(iterations):
        assignments.div_(sum_over_processes(assignments.sum(dim=0)))
        assignments.div_(assignments.sum(dim=1, keepdim=True))
    return assignments


def is_distributed() -> bool:
    """Tells whether this process is one of several that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Sums a tensor over all processes, without gradient; gives the tensor itself where there is one process."""
    if not is_distributed():
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total


def mean_over_processes(local: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes; its gradient is the true one once gradients are averaged over processes.

    `local` has the same shape everywhere; where there is one process, it is returned itself.
    """
    if not is_distributed():
        return local

    def mean(tensor: torch.Tensor) -> torch.Tensor:
        return sum_over_processes(tensor) / torch.distributed.get_world_size()

    averaged = mean(local) + (local - local.detach())  # the difference is 0 and carries the gradient
    if averaged.requires_grad:
        averaged.register_hook(mean)  # every process's output depends on every process's input
    return averaged


def patch_cluster_losses(
    cluster_logits: torch.Tensor,
    assignments: torch.Tensor,
    valid: torch.Tensor,
    temperature: float,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy with the teacher's clusters, and the negative entropy of the mean prediction; both `()`.

    Args:
        cluster_logits (`torch.Tensor` of shape `(tokens, clusters)`): The student's cosines with the prototypes.
        assignments (`torch.Tensor` of shape `(tokens, clusters)`): The teacher's clusters of the same places; rows sum
            to 1. What stands in rows that are not valid does not matter. No gradient flows to them.
        valid (`torch.Tensor` of shape `(tokens,)`, bool): Tokens that lie inside the reference.
        temperature (`float`): Divides the student's cosines.
        rows (`torch.Tensor` of shape `(tokens,)`, int64, *optional*): The row of `assignments` that belongs to each
            token, where they are not those of the same places in order.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the cross-entropy, a mean over valid tokens counted as in [`location_loss`]
        (0 where there is none); and `sum p log p` of the mean prediction `p` over all tokens, valid or not, of all
        processes, in [-ln clusters, 0]. Its gradient is the true one once gradients are averaged over processes.

    Source: arXiv 2212.02400, patch clustering and mean-entropy maximisation; epsilon 1e-8 in the count.
    """
    log_probabilities = F.log_softmax(cluster_logits.float() / temperature, dim=1)
    targets = (assignments if rows is None else assignments[rows]).float()
    cross_entropy = -(targets * log_probabilities).sum(dim=1)
    cluster = (cross_entropy * valid).sum() / (mean_over_processes(valid.sum().float()) + 1e-8)
    mean = mean_over_processes(log_probabilities.exp().mean(dim=0))
    # a cluster that no token comes near: p log p and its gradient are 0 where the softmax has underflowed
    return cluster, (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


# ---- Of EquiCoherent's hosts (DINO, iBOT, DINOv2, VICReg, SimCLR) ----


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """The tensors `(batch, ...)` of all processes, `(processes * batch, ...)` in the order of their ranks.

    A loss of what it returns has the true gradient once gradients are averaged over processes, as
    DistributedDataParallel does: for the mean over processes of what each of them computed. Shapes are equal on all
    processes; outside distributed runs the tensor itself is returned.
    """
    if not is_distributed():
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.detach())
    parts[torch.distributed.get_rank()] = tensor
    gathered = torch.cat(parts)
    if gathered.requires_grad:
        gathered.register_hook(sum_over_processes)  # other processes' losses depend on this process's part
    return gathered


@torch.no_grad()
def center_and_sharpen(logits: torch.Tensor, center: torch.Tensor, temperature: float) -> torch.Tensor:
    """The teacher's probabilities, centered so that no prototype takes all and sharpened so that they are not uniform.

    `logits (..., prototypes)` are its scores, `center` (`prototypes` numbers) their moving mean; `temperature`, above
    0, divides the difference. Rows sum to 1; float32, without gradient.

    Source: arXiv 2104.14294, section 3.1.
    """
    return ((logits.float() - center.float().flatten()) / temperature).softmax(dim=-1)


@torch.no_grad()
def sinkhorn_knopp(logits: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """The teacher's probabilities, balanced over prototypes by Sinkhorn-Knopp on the tokens of all processes.

    It is `objectives.sinkhorn` of `exp(logits / temperature)`, taken in logarithms: no score is so far from the others
    that its token or its prototype loses all its mass, which one maximum for all tokens cannot promise.

    Args:
        logits (`torch.Tensor` of shape `(tokens, prototypes)`): The teacher's scores of this process's tokens, of which
            there may be none; other processes may hold other numbers of them.
        temperature (`float`): Above 0; divides the scores.
        iterations (`int`): Rounds, 1 or more; the same on all processes.

    Returns:
        `torch.Tensor` of the same shape, float32, without gradient: rows sum to 1, columns are even approximately.

    Source: arXiv 2304.07193, section 4 (Sinkhorn-Knopp centering, after arXiv 2006.09882).
    """
    if iterations < 1:
        raise ValueError(
            f"iterations must be 1 or more, got {iterations}; use center_and_sharpen to do without balancing"
        )
    scores = logits.float() / temperature
    for _ in range(iterations):
        # one row a process: -inf where it has no token
        columns = gather_with_gradient(scores.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0)
        scores = (scores - columns).log_softmax(dim=-1)
    return scores.exp()


@torch.no_grad()
def ema_center(center: torch.Tensor, batch_mean: torch.Tensor, momentum: float) -> torch.Tensor:
    """The teacher's center `(1, prototypes)` after one optimizer step, float32; `center` is left as it is.

    `batch_mean` (`prototypes` numbers) is the mean of the teacher's scores in this step, over accumulated batches and
    processes, `momentum` the share of the old center that stays, 0..1.

    Source: arXiv 2104.14294, equation 4.
    """
    return center.float() * momentum + batch_mean.float().reshape(1, -1) * (1 - momentum)


def dino_loss(
    student_logits: torch.Tensor, teacher_probabilities: torch.Tensor, student_temperature: float
) -> torch.Tensor:
    """Cross-entropy of every student view with the teacher's probabilities of every other global view.

    Args:
        student_logits (`torch.Tensor` of shape `(views, batch, prototypes)`): The student's scores, global views first.
        teacher_probabilities (`torch.Tensor` of shape `(globals, batch, prototypes)`): Rows sum to 1.
        student_temperature (`float`): Above 0; divides the student's scores.

    Returns:
        `torch.Tensor` of shape `()`: mean over the pairs of different views and the batch, 0 or more; a ValueError
        where there is no such pair.

    Source: arXiv 2104.14294, equation 3. DINOv2's sum of global and local pairs, each divided by the number of both, is
    the same mean.
    """
    num_views, batch_size, _ = student_logits.shape
    num_global = len(teacher_probabilities)
    if num_views < max(2, num_global):
        raise ValueError(
            f"student_logits must hold the {num_global} views of teacher_probabilities and at least 2 in all, got "
            f"{num_views}; pass the student's global views first, then the local ones"
        )
    log_probabilities = F.log_softmax(student_logits.float() / student_temperature, dim=-1)
    others = log_probabilities.sum(dim=0) - log_probabilities[:num_global]  # (G, B, K): all views but the teacher's own
    return -(teacher_probabilities.float() * others).sum() / (num_global * (num_views - 1) * batch_size)


def masked_patch_weights(bool_masked_pos: torch.Tensor, masked_patches: torch.Tensor) -> torch.Tensor:
    """Weights masked patches so that images count the same however many of their patches are masked.

    `bool_masked_pos (images, patches)` is True where a patch is masked for the student; the images are those of all
    views. Gives 1 / (masked patches of its image) / images for each, `(masked_patches,)` in raster order, float32.
    Their sum is the share of images that have a mask. `masked_patches (masked_patches,)` are their raster indices
    among all patches.

    Source: arXiv 2111.07832 and arXiv 2304.07193, as the authors' codes have it.
    """
    weights = 1 / (bool_masked_pos.sum(dim=1).float() * len(bool_masked_pos))
    return weights[masked_patches // bool_masked_pos.shape[1]]


def ibot_patch_loss(
    student_logits: torch.Tensor, teacher_probabilities: torch.Tensor, weights: torch.Tensor, student_temperature: float
) -> torch.Tensor:
    """Cross-entropy of masked patches with the teacher's probabilities of the same patches unmasked.

    Both scores and probabilities are `(masked_patches, prototypes)`, `weights (masked_patches,)` those of
    [`masked_patch_weights`]; `student_temperature`, above 0, divides the student's scores. A weighted sum, 0 where
    nothing is masked.

    Source: arXiv 2111.07832, equation 2.
    """
    log_probabilities = F.log_softmax(student_logits.float() / student_temperature, dim=-1)
    cross_entropy = -(teacher_probabilities.float() * log_probabilities).sum(dim=-1)
    return (cross_entropy * weights.float()).sum()


def koleo_loss(features: torch.Tensor) -> torch.Tensor:
    """Spreads features over the sphere: each is pushed away from the nearest other one of this process.

    So it depends on how a batch is divided among processes, as in DINOv2's code, alone of all losses here. `features
    (batch, channels)` are one view's class tokens before the head, of 2 images or more. Gives minus the mean logarithm
    of the distance to the nearest neighbour, in [-ln 2, -ln 1e-8].

    Source: arXiv 1806.03198, equation 2; arXiv 2304.07193, section 4. Epsilon 1e-8 in the logarithm.
    """
    if len(features) < 2:
        raise ValueError(f"features must hold at least 2 images, got {len(features)}; raise the batch a process sees")
    with torch.autocast(features.device.type, enabled=False):
        points = F.normalize(features.float(), dim=-1)
        with torch.no_grad():
            neighbour = (points @ points.T).fill_diagonal_(-torch.inf).argmax(dim=-1)
        return -(torch.linalg.vector_norm(points - points[neighbour], dim=-1) + 1e-8).log().mean()


def vicreg_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    invariance_weight: float,
    variance_weight: float,
    covariance_weight: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pulls two views' embeddings together, each channel's deviation to 1 and covariances of channels to 0.

    Statistics are those of all processes' images, 2 or more; the gradient is the true one once gradients are averaged
    over processes.

    Args:
        first, second (`torch.Tensor` of shape `(batch, channels)`): Embeddings of the two views, in the same order.
        invariance_weight, variance_weight (`float`): 25 in the paper, 10 in SIE's code.
        covariance_weight (`float`): 1 in both.

    Returns:
        `tuple[torch.Tensor, ...]` of four of shape `()`, equal on all processes: the weighted sum; invariance, the mean
        squared difference; variance, the mean over views and channels of what deviations lack to 1, in [0, 1];
        covariance, the sum over views of the mean over channels of squared covariances with the other channels.

    Source: arXiv 2105.04906, equations 1 to 6; epsilon 1e-4 in the deviation; the mean of the two variance terms as in
    the authors' code.
    """
    views = gather_with_gradient(torch.stack([first.float(), second.float()], dim=1))  # (W * B, 2, D)
    num_images, _, num_channels = views.shape
    if num_images < 2:
        raise ValueError(f"first and second must hold at least 2 images over all processes, got {num_images}")
    invariance = (views[:, 0] - views[:, 1]).square().mean()
    centered = (views - views.mean(dim=0)).transpose(0, 1)  # (2, W * B, D)
    deviation = (centered.square().sum(dim=1) / (num_images - 1) + 1e-4).sqrt()
    variance = (1 - deviation).relu().mean()
    with torch.autocast(views.device.type, enabled=False):
        covariances = centered.transpose(1, 2) @ centered / (num_images - 1)  # (2, D, D)
    own = torch.eye(num_channels, dtype=torch.bool, device=views.device)
    covariance = covariances.masked_fill(own, 0).square().sum() / num_channels
    loss = invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    return loss, invariance, variance, covariance


def nt_xent_loss(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Each view picks the other view of its image among all other views of all processes' images.

    `first` and `second` are projections `(batch, channels)` of the two views, in the same order; of one image over all
    processes there is nothing else to pick, and the loss is 0. `temperature`, above 0, divides the cosines. A mean over
    this process's views, 0 or more; the gradient is the true one, of the mean over processes, once gradients are averaged
    over them.

    Source: arXiv 2002.05709, equation 1.
    """
    views = F.normalize(torch.stack([first.float(), second.float()], dim=1), dim=-1)  # (B, 2, D)
    candidates = gather_with_gradient(views).flatten(0, 1)  # (2 * W * B, D): both views of an image side by side
    with torch.autocast(views.device.type, enabled=False):
        similarity = views.flatten(0, 1) @ candidates.T / temperature  # (2 * B, 2 * W * B)
    own = torch.arange(len(similarity), device=views.device)
    if is_distributed():
        own = own + len(similarity) * torch.distributed.get_rank()
    return F.cross_entropy(similarity.scatter_(1, own[:, None], -torch.inf), own ^ 1)


def prediction_diversity(probabilities: torch.Tensor) -> torch.Tensor:
    """Mutual information of tokens and prototypes: 0 when all predictions are equal, as after a collapse.

    It is the entropy of the mean of `probabilities (tokens, prototypes)`, this process's, minus their mean entropy, in
    nats, in [0, ln prototypes].
    """
    probabilities = probabilities.float()
    of_mean = torch.special.entr(probabilities.mean(dim=0)).sum()
    return of_mean - torch.special.entr(probabilities).sum(dim=-1).mean()
