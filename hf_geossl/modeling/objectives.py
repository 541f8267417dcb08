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
