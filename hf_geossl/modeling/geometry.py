"""Boxes, quarter turns, RoI pooling, query positions and warps: pure functions in float32, without loops over samples."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def can_check_values(tensor: torch.Tensor) -> bool:
    """Tells whether values of a tensor can be checked: on a CPU, where nothing waits for them, and not while it is traced."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def turn_boxes(boxes: torch.Tensor, quarter_turns: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Turns boxes together with the square picture they lie in, counter-clockwise.

    `boxes (..., 4)` hold x1, y1, x2, y2 in pixels of the upright picture, the result those of the turned one.
    `quarter_turns`, 0..3, and `size`, the picture's side in pixels, are broadcastable to `(...)`.
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
    """Where the overlap of every pair (global view, view) lies in each of the two views, after their quarter turns.

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
    # in two steps, so that the host does not wait for the device
    sizes = torch.as_tensor(crop_sizes, dtype=torch.float32).to(crop_boxes.device, non_blocking=True)
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
    """RoI-align as a matrix: pooled cells = weights @ map positions.

    Equal to torchvision's `roi_align` with `aligned=True, sampling_ratio=-1` for boxes within the map, but
    deterministic, batched and free of host syncs.

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
    """Turns square grids `(..., side ** 2, channels)` in raster order, each by its own number of quarter turns `(...)`.

    Equal to `torch.rot90(grid, quarter_turns, dims=(-2, -1))`, counter-clockwise, for any integers.
    """
    side = round(cells.shape[-2] ** 0.5)
    grid = torch.arange(side * side, device=cells.device).view(side, side)
    tables = torch.stack([torch.rot90(grid, turns).flatten() for turns in range(4)])  # (4, side ** 2)
    index = tables[quarter_turns.long() % 4]  # (..., side ** 2)
    return cells.gather(-2, index[..., None].expand_as(cells))


def _nearest(index: torch.Tensor, length_in: torch.Tensor, length_out: torch.Tensor) -> torch.Tensor:
    """The input that output `index` of a nearest-neighbour resize reads, as TensorFlow computes it in float32.

    The lengths must be tensors on the device of `index`: a GPU divides by a number, also a CPU tensor of one number, by
    multiplying with its reciprocal, which rounds differently.
    """
    source = torch.floor((index + 0.5) * (length_in / length_out))
    return torch.minimum(source, length_in - 1)


def _check_boxes(name: str, boxes: torch.Tensor) -> None:
    """Raises a ValueError for boxes that are not whole pixels or hold none."""
    if not bool((boxes == boxes.round()).all()):
        raise ValueError(f"{name} must hold whole pixels (crops are cut without sub-pixels), got {boxes.tolist()}")
    if not bool((boxes[..., 2:] > boxes[..., :2]).all()):
        raise ValueError(f"{name} must be x1, y1, x2, y2 with x1 < x2 and y1 < y2, got {boxes.tolist()}")


def _check_queries(
    reference_boxes: torch.Tensor,
    query_boxes: torch.Tensor,
    reference_flips: torch.Tensor | None,
    query_flips: torch.Tensor | None,
) -> None:
    """Raises a ValueError for shapes that do not fit together, and on a CPU for boxes without whole pixels."""
    if reference_boxes.ndim != 2 or reference_boxes.shape[1] != 4:
        raise ValueError(f"reference_boxes must have shape (batch, 4), got {tuple(reference_boxes.shape)}")
    batch_size = reference_boxes.shape[0]
    if query_boxes.ndim != 3 or query_boxes.shape[0] != batch_size or query_boxes.shape[2] != 4:
        raise ValueError(
            f"query_boxes must have shape ({batch_size}, queries, 4) for {batch_size} references, "
            f"got {tuple(query_boxes.shape)}; stack the queries of an image first"
        )
    for name, flips, shape in (
        ("reference_flips", reference_flips, (batch_size,)),
        ("query_flips", query_flips, tuple(query_boxes.shape[:2])),
    ):
        if flips is not None and tuple(flips.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(flips.shape)}")
    if can_check_values(reference_boxes):
        _check_boxes("reference_boxes", reference_boxes)
        _check_boxes("query_boxes", query_boxes)


def _check_grids(query_size: int, query_grid: int, reference_grid: int) -> None:
    """Raises a ValueError for grids without patches, or with more patches than pixels."""
    for name, number in (("query_grid", query_grid), ("reference_grid", reference_grid)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if query_size < query_grid:
        raise ValueError(f"query_size must be at least query_grid = {query_grid} pixels, got {query_size}")


def batched_query_positions(
    reference_boxes: torch.Tensor,
    query_boxes: torch.Tensor,
    *,
    query_size: int,
    query_grid: int,
    reference_grid: int = 14,
    reference_flips: torch.Tensor | None = None,
    query_flips: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which patch of the reference view holds each patch of the query views: the targets of LOCA's localisation.

    One pixel decides for a patch: the one that two nearest-neighbour resizes of a map of the reference's patches (crop
    to `query_size`, then to `query_grid`) leave over, computed in float32 as TensorFlow does (the ratio first, then the
    product), which is equal bit for bit to the authors' maps.

    Args:
        reference_boxes (`torch.Tensor` of shape `(batch, 4)`): x1, y1, x2, y2 of the reference crops in whole pixels of
            the source image, x2 and y2 exclusive, below 2^24; integers of any type.
        query_boxes (`torch.Tensor` of shape `(batch, queries, 4)`): The same of the query crops.
        query_size (`int`): Side of a query view in pixels after resizing.
        query_grid (`int`): Patches a side of a query view.
        reference_grid (`int`): Patches a side of the reference view.
        reference_flips (`torch.Tensor` of shape `(batch,)`, bool, *optional*): Which references are mirrored left to
            right; none if absent.
        query_flips (`torch.Tensor` of shape `(batch, queries)`, bool, *optional*): Which queries are mirrored.

    Returns:
        `torch.Tensor` of shape `(batch, queries, query_grid ** 2)`: int64, for the patches of a query as the network
        sees it, in raster order, the raster index of a patch of the reference as the network sees it, -1 outside.

    Raises:
        ValueError: If shapes or sizes do not fit; on a CPU also if a box is empty or not of whole pixels (elsewhere
            that is not checked, since the host would have to wait for the device).

    Source: LOCA (arXiv 2212.02400); the rounding follows the authors' code.
    """
    _check_queries(reference_boxes, query_boxes, reference_flips, query_flips)
    _check_grids(query_size, query_grid, reference_grid)
    device = reference_boxes.device
    size, grid, cells = (
        torch.full((1,), value, dtype=torch.float32, device=device)
        for value in (query_size, query_grid, reference_grid)
    )
    pixel = _nearest(torch.arange(query_grid, dtype=torch.float32, device=device), size, grid)  # (g,)

    def along(axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Row or column of the reference, and whether the pixel lies inside it, each `(batch, queries, g)`."""
        start, end = query_boxes[..., axis, None].float(), query_boxes[..., axis + 2, None].float()  # (B, Q, 1)
        origin = reference_boxes[:, None, axis, None].float()  # (B, 1, 1)
        length = reference_boxes[:, None, axis + 2, None].float() - origin
        place = start + _nearest(pixel, end - start, size) - origin  # (B, Q, g)
        return _nearest(place, cells, length).long(), (place >= 0) & (place < length)

    column, column_inside = along(0)
    row, row_inside = along(1)
    if reference_flips is not None:
        column = torch.where(reference_flips.bool()[:, None, None], reference_grid - 1 - column, column)
    index = row[..., :, None] * reference_grid + column[..., None, :]  # (B, Q, g, g)
    index = torch.where(row_inside[..., :, None] & column_inside[..., None, :], index, -1)
    if query_flips is not None:
        index = torch.where(query_flips.bool()[..., None, None], index.flip(-1), index)
    return index.flatten(-2)


def query_positions(
    reference_box: Sequence[int] | torch.Tensor,
    query_box: Sequence[int] | torch.Tensor,
    *,
    query_size: int,
    query_grid: int,
    reference_grid: int = 14,
    reference_flipped: bool = False,
    query_flipped: bool = False,
) -> torch.Tensor:
    """Which patch of the reference view holds each patch of one query view; see `batched_query_positions`.

    Boxes are four whole numbers, x1, y1, x2, y2; the result is `(query_grid ** 2,)`.

    Raises:
        ValueError: If a box is empty, is not of whole pixels or has not four numbers, or if a size does not fit.
    """
    boxes = []
    for name, box in (("reference_box", reference_box), ("query_box", query_box)):
        values = torch.as_tensor(box)
        boxes.append(values if values.is_floating_point() else values.to(torch.int64))
        if boxes[-1].shape != (4,):
            raise ValueError(f"{name} must hold x1, y1, x2, y2, got {box}")
        _check_boxes(name, boxes[-1])
    return batched_query_positions(
        boxes[0][None],
        boxes[1][None, None],
        query_size=query_size,
        query_grid=query_grid,
        reference_grid=reference_grid,
        reference_flips=torch.tensor([reference_flipped], device=boxes[0].device),
        query_flips=torch.tensor([[query_flipped]], device=boxes[0].device),
    )[0, 0]


def warp_images(
    images: torch.Tensor,
    angles: torch.Tensor,
    translations: torch.Tensor,
    padding_mode: str = "reflection",
    fill: Sequence[float] | None = None,
) -> torch.Tensor:
    """Turns each image about its centre by an angle of its own, then shifts it: one bilinear sampling for the whole batch.

    A point x (y pointing down) goes to R (x - c) + c + t with R = [[cos, -sin], [sin, cos]] and c the middle of the
    image.

    Args:
        images (`torch.Tensor` of shape `(batch, channels, height, width)`): Of any floating type, square or not.
        angles (`torch.Tensor` of shape `(batch,)`): In radians, clockwise as displayed, on the same device.
        translations (`torch.Tensor` of shape `(batch, 2)`): To the right and down, in pixels, on the same device.
        padding_mode (`str`): What lies outside of the image: "reflection" (mirrored about the outer edges of its border
            pixels) or "zeros".
        fill (`Sequence[float]`, *optional*): One value a channel that stands outside in place of 0, such as black in
            normalised images; for "zeros" only.

    Returns:
        `torch.Tensor` of the shape and type of `images`; sampled in float32.

    Source: EquiCoherent (arXiv 2503.18753), the transformations in the plane; with "zeros" equal to torchvision's
    bilinear `affine` without its fill.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point of shape (batch, channels, height, width), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    batch_size, channels, height, width = images.shape
    for name, values, shape in (("angles", angles, (batch_size,)), ("translations", translations, (batch_size, 2))):
        if tuple(values.shape) != shape:
            raise ValueError(f"{name} must have shape {shape} for {batch_size} images, got {tuple(values.shape)}")
    if padding_mode not in ("reflection", "zeros"):
        raise ValueError(f"padding_mode must be 'reflection' or 'zeros', got {padding_mode!r}")
    if fill is not None and (padding_mode != "zeros" or len(fill) != channels):
        raise ValueError(
            f"fill must hold one value for each of the {channels} channels and needs padding_mode 'zeros', "
            f"got {fill} with {padding_mode!r}"
        )
    # `affine_grid` says the same by a matrix product, which autocast and TF32 would round to tenths of a pixel.
    cos, sin = angles.float().cos()[:, None, None], angles.float().sin()[:, None, None]  # (B, 1, 1)
    shift_x, shift_y = translations.float()[:, :, None, None].unbind(1)  # (B, 1, 1)
    columns = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    rows = torch.arange(height, device=images.device, dtype=torch.float32) - (height - 1) / 2
    x, y = columns - shift_x, rows[:, None] - shift_y  # (B, 1, W), (B, H, 1)
    # The inverse turn finds the source of each target pixel.
    grid = torch.stack([(cos * x + sin * y) * (2 / width), (cos * y - sin * x) * (2 / height)], dim=-1)  # (B, H, W, 2)
    pixels = images.float()
    outside = None
    if fill is not None:  # in two steps, so that the host does not wait for the device
        outside = torch.tensor(fill, dtype=torch.float32).to(pixels.device, non_blocking=True)[:, None, None]
    if outside is not None:
        pixels = pixels - outside
    warped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)
    if outside is not None:
        warped = warped.add_(outside)
    return warped.to(images.dtype)
