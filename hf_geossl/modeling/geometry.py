"""Boxes, quarter turns and RoI pooling: pure functions of tensors, all in float32 and without a loop over samples."""

from collections.abc import Sequence

import torch


def turn_boxes(boxes: torch.Tensor, quarter_turns: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """
    Turns boxes together with the square picture they lie in, counter-clockwise.

    Args:
        boxes (`torch.Tensor` of shape `(..., 4)`): x1, y1, x2, y2 in pixels of the upright picture.
        quarter_turns (`torch.Tensor` broadcastable to `(...)`): Counter-clockwise quarter turns, 0..3.
        size (`torch.Tensor` broadcastable to `(...)`): Side of the picture in pixels.

    Returns:
        `torch.Tensor` of shape `(..., 4)`: x1, y1, x2, y2 in pixels of the turned picture.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    candidates = torch.stack(
        [
            boxes,
            torch.stack([y1, size - x2, y2, size - x1], dim=-1),
            torch.stack([size - x2, size - y2, size - x1, size - y1], dim=-1),
            torch.stack([size - y2, x1, size - y1, x2], dim=-1),
        ],
        dim=-2,
    )  # (..., 4 turns, 4)
    index = quarter_turns.long()[..., None, None].expand(*boxes.shape[:-1], 1, 4)
    return candidates.gather(-2, index).squeeze(-2)


def overlap_boxes(
    crop_boxes: torch.Tensor,
    quarter_turns: torch.Tensor,
    crop_sizes: Sequence[int] | torch.Tensor,
    num_global: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where the overlap of every pair (global view, view) lies in each of the two views, after their quarter turns.

    Args:
        crop_boxes (`torch.Tensor` of shape `(batch, views, 4)`): x1, y1, x2, y2 of each crop in pixels of the source
            image, global views first.
        quarter_turns (`torch.Tensor` of shape `(batch, views)`): Counter-clockwise quarter turns of each view, 0..3.
        crop_sizes (`views` integers): Side of each view in pixels after resizing.
        num_global (`int`): Number of global views.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: boxes in the frame of the global view, `(batch, num_global, views, 4)`,
        and in the frame of the other view, `(batch, views, num_global, 4)`; x1, y1, x2, y2 in pixels of that view.

    Raises:
        ValueError: If the shapes do not fit together.

    Source: arXiv 2304.08014; section 2.2 of the authors' bookkeeping (first divide, then multiply, in float32).
    """
    if crop_boxes.ndim != 3 or crop_boxes.shape[-1] != 4:
        raise ValueError(
            f"crop_boxes must have shape (batch, views, 4), got {tuple(crop_boxes.shape)}; stack the views of an image first"
        )
    batch_size, num_views, _ = crop_boxes.shape
    if quarter_turns.shape != (batch_size, num_views):
        raise ValueError(f"quarter_turns must have shape {(batch_size, num_views)}, got {tuple(quarter_turns.shape)}")
    sizes = torch.as_tensor(crop_sizes, dtype=torch.float32, device=crop_boxes.device)
    if sizes.shape != (num_views,):
        raise ValueError(f"crop_sizes must name the side of each of the {num_views} views, got {tuple(sizes.shape)}")
    if not 1 <= num_global <= num_views:
        raise ValueError(f"num_global must be between 1 and the number of views {num_views}, got {num_global}")
    boxes = crop_boxes.float()
    first, second = boxes[:, :num_global, None], boxes[:, None, :]  # (B, G, 1, 4), (B, 1, V, 4)
    overlap = torch.cat(
        [torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])], dim=-1
    )  # (B, G, V, 4) in pixels of the source

    def in_frame(frame: torch.Tensor, turns: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        origin, side = frame[..., :2], frame[..., 2:] - frame[..., :2]
        scaled = (overlap - origin.repeat(1, 1, 1, 2)) / side.repeat(1, 1, 1, 2) * size[..., None]
        return turn_boxes(scaled, turns, size)

    shape = (batch_size, num_global, num_views)
    global_turns, view_turns = quarter_turns[:, :num_global, None], quarter_turns[:, None, :]
    teacher = in_frame(first, global_turns.expand(shape), sizes[None, :num_global, None].expand(shape))
    student = in_frame(second, view_turns.expand(shape), sizes[None, None, :].expand(shape))
    return teacher, student.transpose(1, 2)


def _axis_weights(start: torch.Tensor, end: torch.Tensor, cells: int, length: int) -> torch.Tensor:
    """Weight `(..., cells, length)` of each map position in each cell along one axis, float32."""
    extent = (end - start)[..., None, None]  # (..., 1, 1)
    cell = extent / cells
    samples = torch.ceil(cell).clamp_min(1.0)  # the adaptive grid of sampling_ratio = -1
    sample = torch.arange(max(-(-length // cells), 1), device=start.device, dtype=torch.float32)  # (S,)
    index = torch.arange(cells, device=start.device, dtype=torch.float32)[:, None]  # (cells, 1)
    points = start[..., None, None] + index * cell + (sample + 0.5) * cell / samples  # (..., cells, S)
    inside = (points >= -1.0) & (points <= length) & (sample < samples)
    points = points.clamp(0.0, length - 1.0)[..., None]
    hat = (1.0 - (points - torch.arange(length, device=start.device)).abs()).clamp_min(0.0)  # (..., cells, S, length)
    return (hat * inside[..., None]).sum(dim=-2) / samples


def roi_align_weights(boxes: torch.Tensor, output_size: int, height: int, width: int) -> torch.Tensor:
    """
    RoI-align as a matrix: pooled cells = weights @ map positions. Equal to torchvision's `roi_align` with
    `aligned=True, sampling_ratio=-1` for boxes within the map, but deterministic, batched and free of host syncs.

    Args:
        boxes (`torch.Tensor` of shape `(..., 4)`): x1, y1, x2, y2 in units of map positions, within the map.
        output_size (`int`): Cells a side.
        height, width (`int`): Size of the map.

    Returns:
        `torch.Tensor` of shape `(..., output_size ** 2, height * width)`, float32; rows are cells in raster order.
    """
    x1, y1, x2, y2 = (boxes.float() - 0.5).unbind(-1)
    rows = _axis_weights(y1, y2, output_size, height)
    columns = _axis_weights(x1, x2, output_size, width)
    weights = rows[..., :, None, :, None] * columns[..., None, :, None, :]  # (..., k, k, H, W)
    return weights.flatten(-2).flatten(-3, -2)


def turn_cells(cells: torch.Tensor, quarter_turns: torch.Tensor) -> torch.Tensor:
    """
    Turns square grids counter-clockwise, each by its own number of quarter turns.

    Args:
        cells (`torch.Tensor` of shape `(..., side ** 2, channels)`): Grids in raster order.
        quarter_turns (`torch.Tensor` of shape `(...)`): Counter-clockwise quarter turns; any integer.

    Returns:
        `torch.Tensor` of the shape of `cells`; equal to `torch.rot90(grid, quarter_turns, dims=(-2, -1))`.
    """
    side = round(cells.shape[-2] ** 0.5)
    grid = torch.arange(side * side, device=cells.device).view(side, side)
    tables = torch.stack([torch.rot90(grid, turns).flatten() for turns in range(4)])  # (4, side ** 2)
    index = tables[quarter_turns.long() % 4]  # (..., side ** 2)
    return cells.gather(-2, index[..., None].expand_as(cells))
