"""Loss functions: pure functions of tensors, computed in float32 whatever the autocast."""

import torch
from torch.nn import functional as F


def overlap_cosine_loss(student_cells: torch.Tensor, teacher_cells: torch.Tensor) -> torch.Tensor:
    """
    GTSA's crop loss of each pair of views: minus the cosine of what both see of their overlap, cell by cell.

    Args:
        student_cells (`torch.Tensor` of shape `(batch, views, globals, cells, channels)`): Pooled student maps.
        teacher_cells (`torch.Tensor` of the same shape): Pooled teacher maps, already turned to the student's frame.

    Returns:
        `torch.Tensor` of shape `(views, globals)`: mean over batch and cells, in [-1, 1].

    Source: arXiv 2304.08014, crop loss; epsilon 1e-12 as in the authors' code.
    """
    student = F.normalize(student_cells.float(), dim=-1, eps=1e-12)
    teacher = F.normalize(teacher_cells.float(), dim=-1, eps=1e-12)
    return -(student * teacher).sum(-1).mean(dim=(0, 3))


def patch_correspondence_loss(
    student_tokens: torch.Tensor, teacher_tokens: torch.Tensor, num_matches: int
) -> torch.Tensor:
    """
    GTSA's patch-correspondence loss of each pair: every token finds its most similar one in the other view, and the
    best matches in each direction are pulled together. Gradient flows to the student's tokens, not through the choice.

    Args:
        student_tokens (`torch.Tensor` of shape `(batch, views, student_tokens, channels)`): Predictions.
        teacher_tokens (`torch.Tensor` of shape `(batch, globals, teacher_tokens, channels)`): Targets.
        num_matches (`int`): Matches kept in each direction; capped by the tokens there are.

    Returns:
        `torch.Tensor` of shape `(views, globals)`: minus the mean cosine of the kept matches, both directions
        averaged, in [-1, 1].

    Source: arXiv 2304.08014, patch-correspondence loss; epsilon 1e-8 as in the authors' code.
    """
    student = F.normalize(student_tokens.float(), dim=-1, eps=1e-8)
    teacher = F.normalize(teacher_tokens.float(), dim=-1, eps=1e-8).detach()
    batch_size, num_views, num_student, _ = student.shape
    num_global, num_teacher = teacher.shape[1:3]
    with torch.no_grad():
        similarity = torch.einsum("bvic,bgjc->bvgij", student, teacher)
        best_of_student, teacher_of_student = similarity.max(dim=-1)  # (B, V, G, Ns)
        best_of_teacher, student_of_teacher = similarity.max(dim=-2)  # (B, V, G, Nt)
        kept_student = best_of_student.topk(min(num_matches, num_student), dim=-1).indices  # (B, V, G, K)
        kept_teacher = best_of_teacher.topk(min(num_matches, num_teacher), dim=-1).indices

    batch = torch.arange(batch_size, device=student.device)[:, None, None, None]
    view = torch.arange(num_views, device=student.device)[:, None, None]
    of_global = torch.arange(num_global, device=student.device)[:, None]

    def mean_cosine(student_index: torch.Tensor, teacher_index: torch.Tensor) -> torch.Tensor:
        pairs = student[batch, view, student_index] * teacher[batch, of_global, teacher_index]  # (B, V, G, K, C)
        return pairs.sum(-1).mean(dim=(0, 3))

    from_student = mean_cosine(kept_student, teacher_of_student.gather(-1, kept_student))
    from_teacher = mean_cosine(student_of_teacher.gather(-1, kept_teacher), kept_teacher)
    return -0.5 * (from_student + from_teacher)


def rotation_loss(rotation_logits: torch.Tensor, quarter_turns: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy of the predicted quarter turn.

    Args:
        rotation_logits (`torch.Tensor` of shape `(batch, views, 4)`): Scores of 0, 1, 2, 3 counter-clockwise turns.
        quarter_turns (`torch.Tensor` of shape `(batch, views)`): The turns made, 0..3.

    Returns:
        `torch.Tensor` of shape `()`: mean over views and batch; ln 4 where nothing is known.

    Source: arXiv 2304.08014, rotation prediction.
    """
    return F.cross_entropy(rotation_logits.float().flatten(0, 1), quarter_turns.long().flatten())
